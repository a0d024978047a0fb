"""`python -m hfq` is `hfq`."""

from __future__ import annotations

from hfq.cli import main

if __name__ == "__main__":
    main()
