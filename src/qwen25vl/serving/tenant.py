"""Whose request is being answered, where a server has several keys.

What is kept of one key's requests, beginnings of prompts and pictures, serves no other key: how
soon a first token comes would tell what others have asked.
"""

from __future__ import annotations

from contextvars import ContextVar

TENANT: ContextVar[str] = ContextVar("tenant", default="")
"""The digest of the key; "" where there is only one, or none. The guard sets it for a request, and
the tasks of that request inherit it."""


def cache_salt(own: str | None) -> str:
    """The salt of a request's caches. own: the one that it names."""
    tenant = TENANT.get()
    return f"{tenant}:{own or ''}" if tenant else own or ""
