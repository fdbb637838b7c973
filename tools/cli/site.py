"""The documentation site."""

from __future__ import annotations

import click

from tools.cli.common import Failure


@click.group()
def site() -> None:
    """The documentation site."""


def calling(name: str, **arguments: object) -> None:
    """Call the function of that name in `tools.site.build` on the atlas."""
    from tools.site import build

    try:
        getattr(build, name)(click.get_current_context().obj, **arguments)
    except build.SiteError as error:
        raise Failure(str(error)) from error


@site.command()
@click.option("--check", is_flag=True, help="Build it twice, from the cached notebooks and from new runs, and compare.")
def build(check: bool) -> None:
    """Run what the pages need and build the site into site/."""
    calling("check" if check else "build")


@site.command()
def serve() -> None:
    """Build the site and serve it on localhost."""
    calling("serve")


@site.command()
def materialise() -> None:
    """Write the generated pages as Markdown files, for another generator."""
    calling("materialise")
