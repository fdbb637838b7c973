"""Answers from options, or from questions on a terminal; where neither gives one, what is missing is said at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import click

from ..knowledge.completeness import INDEX_AXES
from ..knowledge.findings import did_you_mean
from ..knowledge.schema import Axes, Axis
from ..knowledge.text import one_line

Check = Callable[[str], str]
"""Says what is wrong with an answer; nothing if it will do."""


def on_a_terminal() -> bool:
    """Whether somebody can be asked."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


class Asker:
    """Takes an answer from its option, else asks; without a terminal it notes the option as missing and goes on."""

    def __init__(self, *, interactive: bool | None = None) -> None:
        self.interactive = on_a_terminal() if interactive is None else interactive
        self.missing: list[str] = []

    def text(
        self,
        option: str,
        given: str | None,
        question: str,
        *,
        required: bool = True,
        default: str | None = None,
        check: Check = lambda text: "",
    ) -> str | None:
        """One line of text. `default` is taken without asking where nobody can be asked."""
        if given is not None:
            given = given.strip()
            if problem := check(given) if given or not required else "an answer is needed":
                raise click.UsageError(f"{option}: {problem}")
            return given or None
        if not self.interactive:
            if required and default is None:
                self.missing.append(option)
            return default
        while True:
            hint = "" if required else " (Enter to leave it out)"
            answer = click.prompt(f"{question}{hint}", default=default or "", show_default=default is not None).strip()
            if not answer and not required:
                return None
            problem = check(answer) if answer else "an answer is needed"
            if not problem:
                return str(answer)
            click.echo(f"  {problem}")

    def texts(self, option: str, given: Sequence[str], question: str) -> list[str]:
        """Any number of lines, asked for until an empty one."""
        if given or not self.interactive:
            return list(given)
        lines: list[str] = []
        while answer := click.prompt(f"{question} {len(lines) + 1} (Enter to end)", default="", show_default=False):
            lines.append(answer.strip())
        return lines

    def choice(self, option: str, given: str | None, question: str, choices: Sequence[str]) -> str:
        """One of a few words; the first is the default."""
        if given is not None:
            return given
        if not self.interactive:
            return choices[0]
        return str(click.prompt(question, type=click.Choice(choices), default=choices[0]))

    def agreed(self, question: str, *, default: bool = True) -> bool:
        """Yes or no; the default where nobody can be asked."""
        return click.confirm(question, default=default) if self.interactive else default

    def classification(
        self, axes: Axes, given: Mapping[str, Sequence[str]], *, optional: Iterable[str] = (), also: bool = True
    ) -> dict[str, list[str]]:
        """Terms on the axes, asked for in the order of the decision card.

        `given` holds terms already known; `optional` are axes that this kind of entry need not have. Axes by which
        entries are listed are required; the others are asked for only if `also`.
        """
        terms = {name: self._checked(name, axes, words) for name, words in given.items()}
        needed = [name for name in INDEX_AXES if name in axes and name not in optional]
        if not self.interactive:
            self.missing += [f"--axis {name}=..." for name in needed if name not in terms]
            return {name: terms[name] for name in axes if name in terms}
        for step in axes.decision_card:
            open_axes = [n for n in step.axes if n in axes and n not in terms and (n in needed or also)]
            if open_axes:
                click.echo(f"\n{click.style(one_line(step.ask), bold=True)}")
            for name in open_axes:
                if answer := self._terms(name, axes[name], required=name in needed):
                    terms[name] = answer
        return {name: terms[name] for name in axes if name in terms}

    def _checked(self, name: str, axes: Axes, words: Sequence[str]) -> list[str]:
        if name not in axes:
            raise click.UsageError(f"there is no axis {name!r}; {did_you_mean(name, axes.axes)}")
        chosen, problem = chosen_terms(axes[name], ",".join(words))
        if problem:
            raise click.UsageError(f"--axis {name}: {problem}")
        return chosen

    def _terms(self, name: str, axis: Axis, *, required: bool) -> list[str]:
        click.echo(f"  {axis.name}: {one_line(axis.question)}")
        width = max(map(len, axis.terms))
        for n, (term, about) in enumerate(axis.terms.items(), 1):
            click.echo(f"  {n:3}  {term:{width}}  {about.name}")
        wanted = "a number or a name" if axis.choice == "single" else "numbers or names, the main one first"
        while True:
            prompt = f"  {wanted}; ? explains{'' if required else ', Enter leaves it out'}"
            answer = click.prompt(prompt, default="", show_default=False).strip()
            if answer.startswith("?"):
                explain(axis)
                continue
            if not answer and not required:
                return []
            chosen, problem = chosen_terms(axis, answer)
            if chosen and not problem:
                return chosen
            click.echo(f"  {problem or 'an answer is needed'}")

    def done(self) -> None:
        """Raise the error that names all options that are missing, if there are some."""
        if self.missing:
            raise click.UsageError(
                f"missing: {', '.join(dict.fromkeys(self.missing))} (on a terminal you would be asked for them)"
            )


def chosen_terms(axis: Axis, answer: str) -> tuple[list[str], str]:
    """The terms that an answer names, by number or by name, and what is wrong with it."""
    names = list(axis.terms)
    chosen: list[str] = []
    for word in filter(None, (part.strip() for part in answer.split(","))):
        term = names[int(word) - 1] if word.isdecimal() and 1 <= int(word) <= len(names) else word
        if term not in axis.terms:
            by_name = {about.name.lower(): key for key, about in axis.terms.items()}
            if term.lower() not in by_name:
                return [], f"{word!r} is no term of it; {did_you_mean(word, names)}"
            term = by_name[term.lower()]
        if term in chosen:
            return [], f"{term} stands there twice"
        chosen.append(term)
    if axis.choice == "single" and len(chosen) > 1:
        return [], "it takes one term only"
    return chosen, ""


def explain(axis: Axis) -> None:
    """What the terms of an axis mean, and how to choose between them."""
    click.echo(f"\n  {one_line(axis.definition)}")
    for term, about in axis.terms.items():
        click.echo(f"  {click.style(term, bold=True)}: {one_line(about.definition)}")
        for more in filter(None, (about.question, about.tie_break)):
            click.echo(f"      {one_line(more)}")
    for more in (*([axis.rule] if axis.rule else ()), *axis.tie_breaks, *axis.rulings):
        click.echo(f"  - {one_line(more)}")
    click.echo("")
