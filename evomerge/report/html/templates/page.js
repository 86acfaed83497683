"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const chosen = {};
  const drawn = new Set();

  // Colours are names of the style sheet's variables, so that figures change with the theme.
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const found = /^var\((--[a-z-]+)\)$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value))
      return value.some((v) => typeof v === "string" || (v && typeof v === "object")) ? value.map((v) => resolve(v, style)) : value;
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, style)]));
    return value;
  };

  const axisDefaults = (style, phone) => ({
    gridcolor: style.getPropertyValue("--line").trim(),
    linecolor: style.getPropertyValue("--line").trim(),
    zerolinecolor: style.getPropertyValue("--line").trim(),
    tickcolor: style.getPropertyValue("--line").trim(),
    zeroline: false, automargin: true, fixedrange: phone, ticks: "",
    title: { font: { size: 12, color: style.getPropertyValue("--quiet").trim() }, standoff: 8 },
  });

  const merge = (base, own) => {
    const result = { ...base };
    for (const [key, value] of Object.entries(own || {}))
      result[key] = value && typeof value === "object" && !Array.isArray(value) && base[key] ? merge(base[key], value) : value;
    return result;
  };

  const draw = (id) => {
    const element = document.getElementById(id);
    const figure = figures[id];
    const view = figure.views[chosen[id] || 0];
    const style = getComputedStyle(root);
    const phone = element.clientWidth < 560;
    const quiet = style.getPropertyValue("--quiet").trim();
    const text = style.getPropertyValue("--text").trim();
    const own = resolve(view.layout, style);
    const base = {
      height: figure.height, autosize: true, showlegend: false, dragmode: phone ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: phone ? 11 : 12, color: quiet },
      margin: { l: phone ? 40 : 56, r: 12, t: 12, b: 44 },
      hoverlabel: {
        bgcolor: style.getPropertyValue("--raised").trim(), bordercolor: style.getPropertyValue("--line").trim(),
        font: { color: text, size: 12 }, align: "left", namelength: -1,
      },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: quiet } },
    };
    for (const name of ["xaxis", "yaxis", ...Object.keys(own).filter((key) => /^[xy]axis\d+$/.test(key))])
      base[name] = axisDefaults(style, phone);
    const layout = merge(base, own);
    layout.annotations = (own.annotations || []).map((a) => ({ ...a, font: { color: quiet, size: 11, ...a.font } }));
    const config = { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset", plotlyServerURL: "" };
    drawn.add(id);
    return Plotly.react(element, resolve(view.data, style), layout, config);
  };

  // plotly.js comes packed: the page is passed on, and most of it would be that.
  const unpack = async () => {
    const packed = document.getElementById("plotly");
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    packed.remove();
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
  };

  const begin = () => {
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries)
        if (entry.isIntersecting) { near.unobserve(entry.target); if (!drawn.has(entry.target.id)) draw(entry.target.id); }
    }, { rootMargin: "600px" });
    for (const id of Object.keys(figures)) near.observe(document.getElementById(id));
    const redraw = () => drawn.forEach(draw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    document.addEventListener("evomerge-theme", redraw);
    window.addEventListener("beforeprint", () => Object.keys(figures).forEach((id) => drawn.has(id) || draw(id)));
  };
  unpack().then(begin, () => { document.getElementById("old").hidden = false; });

  for (const group of document.querySelectorAll(".switch"))
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      chosen[group.dataset.for] = Number(button.dataset.view);
      draw(group.dataset.for);
    });

  const stored = (() => { try { return localStorage.getItem("evomerge-theme"); } catch { return null; } })();
  if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("evomerge-theme", root.dataset.theme); } catch { /* a file may have no storage */ }
    document.dispatchEvent(new Event("evomerge-theme"));
  });

  for (const button of document.querySelectorAll(".copy"))
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("pre");
      try { await navigator.clipboard.writeText(code.textContent); }
      catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        const selection = window.getSelection();
        selection.removeAllRanges(); selection.addRange(range);
        document.execCommand("copy");
        selection.removeAllRanges();
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
})();
