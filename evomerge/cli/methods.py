"""``evomerge methods``: the merge methods and their parameters, as declared."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.options import add_import_option
from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError, nearest
from evomerge.recipes.method_spec import FAMILIES, find_method
from evomerge.utils.imports import import_modules


def run(arguments: Sequence[str]) -> int:
    """Print all methods, or one."""
    parser = verb_parser("methods")
    parser.add_argument("name", metavar="NAME", nargs="?", help="tell more of this method")
    parser.add_argument("--family", metavar="NAME", help=f"only these: {', '.join(FAMILIES)}")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/methods.md")
    add_import_option(parser)
    options = parser.parse_intermixed_args(list(arguments))
    import_modules(options.imports, "--import")

    from evomerge.cli.method_tables import detail, markdown, overview
    from evomerge.merge.methods import METHODS, specs
    from evomerge.report.plain_console import console

    if options.name and options.family:
        raise ConfigError(f"a method, {options.name}, and a family, {options.family}", "one of them", "leave one out")
    if options.family:
        methods = [method for method in METHODS.values() if method.spec.family == options.family]
        if not methods:
            there = [name for name in FAMILIES if any(name == method.spec.family for method in METHODS.values())]
            raise ConfigError(f"there is no method of a family {options.family!r}", nearest(options.family, there))
    elif options.name:
        methods = [METHODS[find_method(options.name, specs()).name]]
    else:
        methods = list(METHODS.values())
    methods.sort(key=lambda method: method.spec.name)
    if options.markdown:
        print(markdown(methods), end="")
    else:
        console.print(detail(methods[0]) if options.name else overview(methods))
    return 0
