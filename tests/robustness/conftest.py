from __future__ import annotations

from tests.cli.conftest import dcz, fails, folder, lenet_frame

__all__ = ["dcz", "fails", "folder", "lenet_frame"]  # fixtures
