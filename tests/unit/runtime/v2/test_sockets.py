"""Sockets that dead shims leave."""

from __future__ import annotations

from agent.runtime.v2.sockets import Sockets


async def test_an_address_that_is_too_long_for_any_socket_holds_nothing_up() -> None:
    """Or the shim that told it would be released never."""
    await Sockets().remove_stale("unix:///" + "x" * 200)
