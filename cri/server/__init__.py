"""The gRPC edge: thin. Verbs live in `agent.pods`; here they get names, metrics and gRPC's status codes."""
