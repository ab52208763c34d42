"""`python -m twinshare` is the `twinshare` command."""

from twinshare.api.cli import main

if __name__ == "__main__":
    main()
