"""Shows Jupyter notebooks as pages, with the outputs that they were saved with; figures of plotly stay alive.

A notebook becomes Markdown and is read by MyST. Nothing is executed: tests/docs runs the notebooks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FIGURE = "application/vnd.plotly.v1+json"


class NotebookParser(MystParser):
    """Parses ``.ipynb`` files."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Read the notebook as the Markdown that it amounts to."""
        super().parse("\n\n".join(markdown(json.loads(inputstring))), document)


def markdown(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells one by one, code before its outputs."""
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        said = ""
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if FIGURE in data:
                yield figure(data[FIGURE], f"figure-{number}-{place}")
            elif "text/html" in data:
                yield f'````{{raw}} html\n<div class="output">{"".join(data["text/html"])}</div>\n````'
            else:
                said += "".join(output.get("text", data.get("text/plain", "")))
        if said:
            yield f"````{{code-block}} text\n:class: output\n\n{said.rstrip()}\n````"


def figure(content: dict[str, Any], name: str) -> str:
    """A figure as HTML that draws itself."""
    drawn = json.dumps([content["data"], {**content["layout"], "autosize": True}], separators=(",", ":"))
    drawn = drawn.replace("</", "<\\/")
    return f"""```{{raw}} html
<div id="{name}"></div>
<script>
(() => {{ const [data, layout] = {drawn};
  delete layout.width;
  const options = {{responsive: true, displayModeBar: false}};
  window.addEventListener("load", () => Plotly.newPlot("{name}", data, layout, options));
}})();
</script>
```"""


def add_plotly(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give pages that are notebooks the library for their figures."""
    if doctree is not None and Path(app.env.doc2path(page)).suffix == ".ipynb":
        app.add_js_file(PLOTLY.name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the parser and the figures' library."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    app.connect("html-page-context", add_plotly)
    app.config.html_static_path.append(str(PLOTLY))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
