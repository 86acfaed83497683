"""``evomerge import``: a mergekit-evolve configuration as an experiment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evomerge.cli.verbs import verb_parser
from evomerge.errors import ConfigError
from evomerge.run.inside import instead_of_part
from evomerge.run.outputs import check_output_file


def run(arguments: Sequence[str]) -> int:
    """Print or write the experiment."""
    parser = verb_parser(
        "import",
        epilog="With -o my/experiment/NAME.yaml: evomerge search --config-dir my experiment=NAME",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a mergekit-evolve configuration (genome and tasks)")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    parser.add_argument(
        "--include-path", action="append", default=[], metavar="DIR", help="a folder with the tasks' YAMLs"
    )
    options = parser.parse_intermixed_args(list(arguments))
    part, _ = instead_of_part(options.file)
    if part:
        raise ConfigError(part, "a mergekit-evolve configuration", "`evomerge search from_run=RUN` begins with a run")
    if not options.file.is_file():
        raise ConfigError(f"there is no file {options.file}", "a mergekit-evolve configuration")

    output: Path | None = options.output
    if output is not None:
        check_output_file(output, [options.file])

    from evomerge.mergekit.experiment import experiment_from_evolve
    from evomerge.utils.files import write_text_atomic

    text = experiment_from_evolve(options.file, (output or options.file).stem, options.include_path)
    if output is None:
        sys.stdout.write(text)
        return 0
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output, text)
    if output.parent.name == "experiment":
        folder = output.parent.parent
        print(f"wrote {output}; evomerge search --config-dir {folder} experiment={output.stem}", file=sys.stderr)
    return 0
