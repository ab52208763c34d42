"""The `twinshare` command."""

import click


@click.group()
@click.version_option(package_name="twinshare-agent")
def main() -> None:
    """One pool of virtual machines out of several people's machines."""
