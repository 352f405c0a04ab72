"""Local read-only pages: nothing here is reachable from another machine, and no page asks for anything from one."""
