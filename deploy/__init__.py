"""How Orlop gets to a node: systemd units, and the image of `orlop watch`."""
