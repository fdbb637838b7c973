"""The documentation site."""

from __future__ import annotations

from collections.abc import Callable

import click

from reference_impls.extras import advice

from .common import Failure, clone, wrong_usage


@click.group()
def site() -> None:
    """The documentation site."""


def calling(name: str) -> Callable[[], None]:
    """What the command of that name does: call the function of that name in `site.build`."""

    @click.pass_context
    def call(ctx: click.Context) -> None:
        root = clone(ctx)
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

    return call


for name, about in (
    ("build", "Run what the pages need and build the site into site/."),
    ("serve", "Build the site and serve it on localhost."),
    ("materialise", "Write the generated pages as Markdown files, for another generator."),
):
    site.add_command(click.Command(name, callback=calling(name), help=about))
