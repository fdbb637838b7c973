"""The documentation site."""

from __future__ import annotations

import click

from reference_impls.extras import advice

from .common import Failure, clone, wrong_usage


@click.group()
def site() -> None:
    """The documentation site."""


def calling(name: str) -> None:
    """Call the function of that name in `site.build` on the clone."""
    root = clone(click.get_current_context())
    try:
        from ..site import build
    except ModuleNotFoundError as error:
        if missing := advice(error, "site"):
            wrong_usage(missing)
        raise
    try:
        getattr(build, name)(root)
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
