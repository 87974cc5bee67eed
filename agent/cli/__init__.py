"""The `orlop` command: parses, calls, prints. Everything but `serve` and the offline `audit` goes through the CRI socket."""
