"""Pinned data and weights in the user's cache."""

from __future__ import annotations

import click

from ..knowledge.findings import did_you_mean
from .common import Failure, as_json, print_json, table, wrong_usage


@click.group()
def assets() -> None:
    """Pinned data and weights in the user's cache."""


@assets.command("list")
@as_json
def assets_list(json_: bool) -> None:
    """List the assets with their state, size and licence."""
    from reference_impls.data import assets as room

    rows = [status._asdict() | {"folder": str(status.folder)} for status in room.status()]
    if json_:
        print_json(rows)
        return
    cells = [
        [s["name"], s["state"], f"{s['download'] / 1e6:.1f} MB", "yes" if s["smoke"] else "", s["licence"], s["title"]]
        for s in rows
    ]
    table(("name", "state", "download", "smoke", "licence", "what"), cells)


def asset_names(names: tuple[str, ...]) -> list[str]:
    from reference_impls.data import assets as room

    for name in names:
        if name not in room.catalogue():
            wrong_usage(f"there is no asset {name!r}", did_you_mean(name, room.catalogue()))
    return list(names) or list(room.catalogue())


@assets.command("get")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--smoke", is_flag=True, help="Those that smoke runs and the notebooks need.")
def assets_get(names: tuple[str, ...], smoke: bool) -> None:
    """Fetch assets that are not in the cache; all of them by default. An interrupted download is resumed."""
    from reference_impls.data import assets as room

    from ..progress import progress

    chosen = list(room.smoke()) if smoke and not names else asset_names(names)
    failures = []
    with progress(unit="bytes") as report:
        for name in chosen:
            try:
                room.get(name, progress=report)
            except room.AssetError as error:
                failures.append(str(error))
    if failures:
        raise Failure("\n".join(failures))


@assets.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME ...]")
def assets_verify(names: tuple[str, ...]) -> None:
    """Hash the files of the assets in the cache again."""
    from reference_impls.data import assets as room

    states = {status.name: status.state for status in room.status()}
    faults = []
    for name in asset_names(names):
        if states[name] == "missing":
            click.echo(f"{name}: missing")
            faults += [name] if names else []
            continue
        problems = room.verify(name)
        click.echo(f"{name}: {'; '.join(problems) or 'intact'}")
        faults += [name] if problems else []
    if faults:
        raise Failure(f"to mend it, run `redundancy assets get {' '.join(faults)}`")
