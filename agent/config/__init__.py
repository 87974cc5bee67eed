"""Settings of the agent, as values: read from `/etc/orlop/config.toml` once and handed down by `agent.daemon`."""
