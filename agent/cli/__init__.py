"""The `orlop` command: parses, calls, prints. Everything but `serve`, `watch` and the offline `audit` goes through the CRI socket."""
