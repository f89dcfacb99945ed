"""``python -m dcompress`` is ``dcz``."""

from __future__ import annotations

from dcompress.cli import main

if __name__ == "__main__":
    main()
