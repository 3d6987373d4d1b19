"""The token store: pictures tokenised once, read by memory map; and the bulk job that writes it."""

from lvm.store.store import TokenStore

__all__ = ["TokenStore"]
