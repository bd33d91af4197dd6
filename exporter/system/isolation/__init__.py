"""One function in a child process: its noise, its memory and its crashes stay there.

`calling` speaks for the caller; `child` is what runs in the child; `fresh` starts it in a new interpreter, `warm`
lets a `server` fork it that has the heavy libraries imported already. Both ways keep the same promises.
`EDGE_FRESH_CHILDREN=1` in the environment asks for a new interpreter each time.
"""

from exporter.system.isolation.calling import IsolatedResult, call_isolated

__all__ = ["IsolatedResult", "call_isolated"]
