#pragma once

namespace mla::app {

// The site's style sheet and script. Nothing in them comes from the network.

inline constexpr const char* site_css = R"css(
:root { color-scheme: light dark; --ink: #202124; --paper: #ffffff; --quiet: #5f6368; --line: #dfe1e5; --box: #1f6fd0; --box2: #8fb8ea; --good: #0b6b35; --bad: #a3261c; --code: #f2f3f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e5e8; --paper: #17191c; --quiet: #9aa0a6; --line: #3a3e44; --box: #6cb0ff; --box2: #2f5f95; --good: #6fce95; --bad: #ff9186; --code: #24272b; } }
* { box-sizing: border-box; }
body { font: 17px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 44rem; padding: 1rem 1rem 4rem; }
h1 { line-height: 1.2; margin: .2rem 0 1.2rem; } h2 { margin-top: 2.2rem; font-size: 1.1rem; }
a { color: var(--box); } nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .95rem; margin-bottom: 1.5rem; }
nav a { padding: .3rem 0; }
.section, .again, .evidence, figcaption { color: var(--quiet); font-size: .92rem; } .section { margin: 0; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--code); padding: .1em .3em; border-radius: .2em; overflow-wrap: anywhere; }
.formula { font: clamp(.75rem, 3.1vw, 1.05rem)/1.6 ui-monospace, "DejaVu Sans Mono", monospace; padding: .4rem 0 .4rem 1rem; border-left: 3px solid var(--box); overflow-x: auto; white-space: pre; }
.listing { background: var(--code); border-radius: .3rem; padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; } .listing code { background: none; padding: 0; overflow-wrap: normal; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; } td { white-space: nowrap; } th.words, td.words { text-align: left; white-space: normal; min-width: 5rem; }
figure { margin: 1.6rem 0; }
.check { border: 1px solid var(--line); border-left: 5px solid var(--good); border-radius: .3rem; padding: .6rem 1rem; margin: 1.4rem 0; } .check p { margin: .2rem 0; }
.check.fails { border-left-color: var(--bad); } .check b, span.holds { color: var(--good); } .check.fails b, span.fails { color: var(--bad); }
.topics { padding-left: 1.6rem; } .topics li { margin: .5rem 0; } .topics .section { display: inline-block; min-width: 4.5rem; }
.code { padding-left: 1.2rem; }
.boxes { border: 1px solid var(--line); border-radius: .3rem; padding: .8rem 1rem; margin-bottom: .4rem; } .boxes-title { margin: 0 0 .6rem; font-weight: 600; }
.box-row { margin: .7rem 0; } .box-label { font-size: .92rem; color: var(--quiet); } .box-line { display: flex; }
.box { height: 1.1rem; background: var(--box); min-width: 2px; } .box:nth-child(even) { background: var(--box2); }
.box-notes { display: flex; flex-wrap: wrap; gap: 0 1.2rem; font-size: .9rem; }
.slider { border: 1px solid var(--line); border-radius: .3rem; padding: .8rem 1rem; margin: 1.4rem 0; } .slider input { width: 100%; height: 2rem; } .slider output { font-weight: 600; }
.bar-name { font-size: .92rem; display: flex; justify-content: space-between; gap: 1rem; } .bar-line { height: .9rem; background: var(--line); border-radius: .2rem; margin-bottom: .6rem; } .bar-fill { height: 100%; background: var(--box); border-radius: .2rem; min-width: 1px; }
)css";

inline constexpr const char* site_js = R"js(
"use strict";
// Ties a slider to its bars: bars(x, data) gives [{name, value, text}], drawn as shares of the largest.
function slide(id, data, shown, bars) {
  const input = document.getElementById(id + "-input"), out = document.getElementById(id + "-bars");
  const draw = () => {
    const x = Number(input.value), all = bars(x, data);
    document.getElementById(id + "-shown").textContent = shown(x);
    const most = Math.max(...all.map(one => Math.abs(one.value)), Number.MIN_VALUE);
    out.replaceChildren(...all.flatMap(one => {
      const name = document.createElement("div"), line = document.createElement("div"), fill = document.createElement("div");
      const left = document.createElement("span"), right = document.createElement("span");
      name.className = "bar-name"; line.className = "bar-line"; fill.className = "bar-fill";
      left.textContent = one.name; right.textContent = one.text;
      fill.style.width = 100 * Math.abs(one.value) / most + "%";
      name.append(left, right); line.append(fill);
      return [name, line];
    }));
  };
  input.addEventListener("input", draw);
  draw();
}
)js";

}  // namespace mla::app
