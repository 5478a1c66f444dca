// The curves and the rollouts of a report. Whatever comes from a run is put in by textContent, never as HTML.
(function () {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const data = read("data");
  const several = data.runs.length > 1;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(value, percent) {
    if (value === null || value === undefined) return "–";
    if (percent) return (100 * value).toFixed(1) + " %";
    const size = Math.abs(value);
    for (const [limit, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "K"]])
      if (size >= limit) return Number((value / (unit === "K" ? 1e3 : limit)).toPrecision(4)) + unit;
    return size && size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(4)));
  }

  // -- curves -------------------------------------------------------------------------------------------------------

  const view = { x: "step", smooth: 0.9, log: false, shown: data.runs.map(() => true), zoom: null };
  const xNames = { step: "step", tokens: "tokens", hours: "hours of training" };
  const plots = new Set();

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  function smoothed(values, weight) {
    let mean = 0, left = 1;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      left *= weight;
      return mean / (1 - left);
    });
  }

  // Curves of a chart: one for each key that a run has, and a smoothed one over it where it has many points.
  function curves(chart) {
    const found = [];
    data.runs.forEach((run, r) => {
      if (!view.shown[r]) return;
      chart.keys.forEach((key, k) => {
        const values = run.columns[key];
        if (!values) return;
        const count = values.reduce((sum, value) => sum + (value !== null), 0);
        const name = several ? (chart.keys.length > 1 ? run.name + " " + chart.labels[k] : run.name) : chart.labels[k];
        const style = { run: r, name, count, color: "c" + ((several ? r : k) % 10), dash: several ? (k + Math.floor(r / 10)) % 3 : 0 };
        const smooth = view.smooth && count > 60;
        if (!smooth || data.runs.length <= 3) found.push({ ...style, values, faint: smooth }); // more would hide the lines
        if (smooth) found.push({ ...style, values: smoothed(values, view.smooth), over: true });
      });
    });
    return found;
  }

  function table(found) {
    const runs = [...new Set(found.map((curve) => curve.run))];
    const tables = runs.map((r) => [data.runs[r].columns[view.x], ...found.filter((c) => c.run === r).map((c) => c.values)]);
    return tables.length === 1 ? tables[0] : uPlot.join(tables);
  }

  const dashes = [[], [7, 4], [2, 3]];

  function options(chart, found, box, positive) {
    const axis = (more) => ({
      stroke: () => color("soft"), grid: { stroke: () => color("line"), width: 1 }, ticks: { show: false },
      font: "12px system-ui, sans-serif", ...more,
    });
    return {
      width: box.clientWidth, height: box.clientHeight, legend: { show: false }, padding: [8, 20, 0, 0],
      scales: { x: { time: false }, y: { distr: positive ? 3 : 1 } },
      cursor: { sync: { key: "report", setSeries: false, scales: ["x", null] }, points: { size: 7 }, drag: { x: true, y: false } },
      axes: [
        axis({ values: (u, ticks) => ticks.map((tick) => number(tick)), space: 70, size: 28 }),
        axis({ values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : chart.percent ? Number((100 * tick).toPrecision(4)) + " %" : number(tick))), size: 58 }),
      ],
      series: [{}, ...found.map((curve) => ({
        stroke: () => color(curve.color) + (curve.faint ? "44" : ""), width: curve.faint ? 1 : 1.8, dash: dashes[curve.dash],
        spanGaps: true, points: { show: curve.count <= 60 && !curve.over, size: 5, fill: () => color(curve.color) },
      }))],
      hooks: { setCursor: [(u) => tell(u)], setScale: [(u, key) => key === "x" && zoomed(u)] },
    };
  }

  function draw(figure) {
    if (figure.plot) {
      plots.delete(figure);
      figure.plot.destroy();
    }
    const chart = data.charts[figure.dataset.chart];
    const box = figure.querySelector(".plot");
    const found = curves(chart);
    const values = found.flatMap((curve) => curve.values);
    const positive = view.log && !chart.percent && values.length > 0 && values.every((value) => value === null || value > 0);
    figure.chart = chart;
    figure.curves = found;
    box.replaceChildren();
    figure.plot = null;
    fillLegend(figure);
    if (!found.length) {
      box.append(element("p", "none", "No run that is shown has these values."));
      return;
    }
    figure.plot = new uPlot(options(chart, found, box, positive), table(found), box);
    figure.plot.figure = figure;
    box.setAttribute("aria-valuemax", figure.plot.data[0].length - 1);
    plots.add(figure);
    if (view.zoom) figure.plot.setScale("x", { min: view.zoom[0], max: view.zoom[1] });
    tell(figure.plot);
  }

  function fillLegend(figure) {
    const legend = figure.querySelector(".legend");
    legend.replaceChildren(element("span", "at", ""));
    figure.entries = [];
    figure.curves.forEach((curve, i) => {
      if (curve.faint) return; // its smoothed one stands for both
      const entry = element("button");
      const key = element("i", "swatch key dash" + curve.dash);
      key.style.borderColor = "var(--" + curve.color + ")";
      const value = element("span", "value", "");
      entry.type = "button";
      entry.append(key, element("span", "", curve.name), value);
      entry.setAttribute("aria-pressed", "true");
      entry.addEventListener("click", () => {
        const show = entry.getAttribute("aria-pressed") !== "true";
        entry.setAttribute("aria-pressed", String(show));
        figure.plot.setSeries(i + 1, { show });
        if (curve.over && i && figure.curves[i - 1].faint) figure.plot.setSeries(i, { show });
      });
      figure.entries.push({ value, curve: i });
      legend.append(entry);
    });
  }

  // Show the values at the cursor, or the last ones, in the legend.
  function tell(u) {
    const figure = u.figure;
    if (!figure) return;
    const xs = u.data[0];
    const at = u.cursor.idx === null || u.cursor.idx === undefined ? xs.length - 1 : u.cursor.idx;
    figure.querySelector(".at").textContent = xNames[view.x] + " " + (view.x === "step" ? xs[at].toLocaleString("en") : number(xs[at]));
    const told = [];
    for (const { value, curve } of figure.entries) {
      const column = u.data[curve + 1];
      let i = at;
      while (i > 0 && (column[i] === null || column[i] === undefined)) i--;
      value.textContent = number(column[i], figure.chart.percent);
      told.push(figure.curves[curve].name + " " + value.textContent);
    }
    const box = figure.querySelector(".plot");
    box.setAttribute("aria-valuenow", at);
    box.setAttribute("aria-valuetext", figure.querySelector(".at").textContent + ": " + told.join(", "));
  }

  function zoomed(u) {
    const { min, max } = u.scales.x;
    const xs = u.data[0];
    if (min === null || !u.figure) return;
    const next = min <= xs[0] && max >= xs[xs.length - 1] ? null : [min, max];
    if (JSON.stringify(next) === JSON.stringify(view.zoom)) return;
    view.zoom = next;
    byId("unzoom").hidden = next === null;
    for (const figure of plots) if (figure.plot !== u) rescale(figure.plot);
  }

  function rescale(u) {
    const xs = u.data[0];
    const [min, max] = view.zoom || [xs[0], xs[xs.length - 1]];
    u.setScale("x", { min, max });
  }

  function setZoom(zoom) {
    view.zoom = zoom;
    byId("unzoom").hidden = zoom === null;
    for (const figure of plots) rescale(figure.plot);
  }

  function byKey(event) {
    const figure = event.currentTarget.closest("figure");
    const u = figure.plot;
    if (!u || event.ctrlKey || event.altKey || event.metaKey) return;
    const xs = u.data[0];
    const first = u.valToIdx(u.scales.x.min), last = u.valToIdx(u.scales.x.max);
    const at = u.cursor.idx === null || u.cursor.idx === undefined ? last : u.cursor.idx;
    const stride = event.shiftKey ? Math.max(1, Math.round((last - first) / 10)) : 1;
    const to = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: first, End: last }[event.key];
    if (to !== undefined) {
      const i = Math.min(Math.max(to, first), last);
      u.setCursor({ left: u.valToPos(xs[i], "x"), top: u.over.clientHeight / 2 });
    } else if (event.key === "+" || event.key === "=") {
      const quarter = (u.scales.x.max - u.scales.x.min) / 4;
      if (quarter > 0) setZoom([Math.max(xs[at] - quarter, xs[0]), Math.min(xs[at] + quarter, xs[xs.length - 1])]);
    } else if (event.key === "-" || event.key === "0" || event.key === "Escape") {
      setZoom(null);
    } else {
      return;
    }
    event.preventDefault();
  }

  function redraw() {
    for (const figure of [...plots]) draw(figure);
  }

  function startCurves() {
    const form = byId("axes");
    if (!form) return;
    if (typeof uPlot === "undefined") {
      byId("no-library").hidden = false;
      form.hidden = byId("charts").hidden = true;
      if (byId("more")) byId("more").hidden = true;
      document.querySelector("#curves .hint").hidden = true;
      return;
    }
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries)
        if (isIntersecting && !target.plot && !target.drawn) {
          target.drawn = true;
          draw(target);
        }
    }, { rootMargin: "400px" });
    const sized = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const u = target.parentElement.plot;
        if (u && target.clientWidth && (u.width !== target.clientWidth || u.height !== target.clientHeight))
          u.setSize({ width: target.clientWidth, height: target.clientHeight });
      }
    });
    for (const figure of document.querySelectorAll("figure")) {
      const box = figure.querySelector(".plot");
      box.addEventListener("keydown", byKey);
      seen.observe(figure);
      sized.observe(box);
    }
    form.addEventListener("change", () => {
      const x = form.elements.x.value;
      if (x !== view.x) view.zoom = null;
      Object.assign(view, { x, smooth: Number(form.elements.smooth.value), log: form.elements.log.checked });
      byId("unzoom").hidden = view.zoom === null;
      redraw();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    byId("unzoom").addEventListener("click", () => setZoom(null));
    for (const box of document.querySelectorAll(".show-run"))
      box.addEventListener("change", () => {
        view.shown[Number(box.value)] = box.checked;
        for (const figure of document.querySelectorAll("figure")) if (figure.drawn) draw(figure);
      });
  }

  // -- rollouts -----------------------------------------------------------------------------------------------------

  const PAGE = 40;

  function startRollouts() {
    const form = byId("filters");
    if (!form) return;
    const index = read("rollouts-index");
    const total = index.step.length;
    const list = byId("list"), next = byId("next"), fields = form.elements;
    const parts = new Map();
    let found = [], shown = 0;

    const tasks = [...new Set(index.task)].sort();
    for (const task of tasks) {
      const option = element("option", "", task || "(none)");
      option.value = task;
      fields.task.append(option);
    }

    // The parts come last in the file: what is above them is drawn while they are still read.
    const whole = new Promise((resolve) => {
      if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve, { once: true });
      else resolve();
    });

    function inflate(part) {
      const bytes = Uint8Array.from(atob(byId("rollouts-" + part).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Response(stream).text().then(JSON.parse);
    }

    // The texts of a rollout. Its part stays compressed until one of them is shown.
    function texts(i) {
      const part = Math.floor(i / data.part_rows);
      if (!parts.has(part)) parts.set(part, whole.then(() => inflate(part)));
      return parts.get(part).then((rows) => rows[i % data.part_rows]);
    }

    const disagrees = (i) => index.strict[i] !== null && index.lenient[i] !== null && index.strict[i] !== index.lenient[i];
    const last = (value, otherwise) => (value === null ? otherwise : value);
    const orders = {
      best: (a, b) => last(index.reward[b], -Infinity) - last(index.reward[a], -Infinity) || b - a,
      worst: (a, b) => last(index.reward[a], Infinity) - last(index.reward[b], Infinity) || b - a,
      longest: (a, b) => last(index.tokens[b], 0) - last(index.tokens[a], 0) || b - a,
    };
    const newest = (a, b) => index.step[b] - index.step[a] || a - b;

    function filter() {
      const wanted = {};
      for (const name of ["step_from", "step_to", "reward_from", "reward_to"])
        wanted[name] = fields[name].value === "" ? null : Number(fields[name].value);
      const { view: { value: kind }, task: { value: task }, id: { value: id } } = fields;
      const run = fields.run ? fields.run.value : "";
      const within = (value, from, to) =>
        (from === null && to === null) || (value !== null && (from === null || value >= from) && (to === null || value <= to));
      found = [];
      for (let i = 0; i < total; i++) {
        if (run !== "" && index.run[i] !== Number(run)) continue;
        if (task !== "" && index.task[i] !== task) continue;
        if (id && !index.id[i].includes(id)) continue;
        if (!within(index.step[i], wanted.step_from, wanted.step_to)) continue;
        if (!within(index.reward[i], wanted.reward_from, wanted.reward_to)) continue;
        if (kind === "disagree" && !disagrees(i)) continue;
        if (kind === "cut" && index.finish[i] !== "length") continue;
        found.push(i);
      }
      found.sort(orders[kind] || newest);
      byId("count").textContent = found.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " rollouts";
      list.replaceChildren();
      shown = 0;
      more();
    }

    function more() {
      for (const i of found.slice(shown, shown + PAGE)) list.append(item(i));
      shown = Math.min(shown + PAGE, found.length);
      next.hidden = shown >= found.length;
      next.textContent = "Show " + Math.min(PAGE, found.length - shown) + " more";
    }

    function item(i) {
      const row = element("li");
      const button = element("button", "row");
      button.type = "button";
      button.dataset.rollout = i;
      button.setAttribute("aria-expanded", "false");
      const right = index.strict[i];
      const graded = disagrees(i) ? "graders disagree" : right === null ? "" : right ? "right" : "wrong";
      const cut = index.finish[i] === "length" ? ", cut off" : "";
      const snippet = element("span", "snippet", " ");
      const where = (several ? data.runs[index.run[i]].name + ", " : "") + "step " + index.step[i];
      button.append(
        element("span", "reward", index.reward[i] === null ? "–" : number(index.reward[i])),
        element("span", "step", where),
        element("span", "mark " + (right === true && !disagrees(i) ? "yes" : right === false || disagrees(i) ? "no" : ""), graded + cut),
        element("span", "tokens", index.tokens[i] === null ? "" : number(index.tokens[i]) + " tokens"),
        snippet,
      );
      button.addEventListener("click", () => toggle(row, button, i));
      row.append(button);
      texts(i).then((text) => { snippet.textContent = String(text[1] ?? "").trim().slice(0, 200) || "(empty)"; }, unreadable(snippet));
      return row;
    }

    const unreadable = (target) => (error) => { target.textContent = "These texts cannot be read: " + error.message; };

    async function toggle(row, button, i) {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      if (!open) {
        row.querySelector(".detail").remove();
        return;
      }
      const detail = element("div", "detail");
      row.append(detail);
      let text;
      try {
        text = await texts(i);
      } catch (error) {
        unreadable(detail)(error);
        return;
      }
      const [prompt, completion, gold, rewards, sample, turns] = text;
      const pairs = element("div", "pairs");
      const add = (name, value) => {
        const pair = element("span", "", name + " ");
        pair.append(element("b", "", value));
        pairs.append(pair);
      };
      add("task", index.task[i] || "–");
      add("problem", index.id[i] || "–");
      if (sample !== null) add("sample", String(sample));
      add("tokens", number(index.tokens[i]));
      for (const [name, grade] of [["strict", index.strict[i]], ["lenient", index.lenient[i]]])
        if (grade !== null) add(name, grade ? "right" : "wrong");
      add("advantage", index.advantage[i] === null ? "not trained on" : number(index.advantage[i]));
      if (rewards && typeof rewards === "object")
        for (const [name, value] of Object.entries(rewards)) add("reward " + name, typeof value === "number" ? number(value) : value);
      const said = turns ? turns.map(([role, content]) => [role === "assistant" ? "Model" : "Environment, as " + role, content]) : [["Completion", completion]];
      for (const [name, value] of [["Prompt", prompt], ...said, ["Right answer", gold]]) {
        if (value === null) continue;
        const block = element("div", name.startsWith("Environment") ? "told" : "");
        const pre = element("pre", "", String(value));
        pre.tabIndex = 0;
        block.append(element("h4", "", name), pre);
        detail.append(block);
      }
      detail.append(pairs);
      if (index.id[i]) {
        const others = element("button", "", "All samples of this prompt");
        others.type = "button";
        others.addEventListener("click", () => {
          form.reset();
          fields.id.value = index.id[i];
          fields.task.value = index.task[i];
          fields.step_from.value = fields.step_to.value = index.step[i];
          if (fields.run) fields.run.value = index.run[i];
          filter();
          byId("rollouts").scrollIntoView();
        });
        const last_line = element("div");
        last_line.append(others);
        detail.append(last_line);
      }
    }

    list.addEventListener("keydown", (event) => {
      const here = event.target.closest("li");
      const to = { ArrowDown: "nextElementSibling", j: "nextElementSibling", ArrowUp: "previousElementSibling", k: "previousElementSibling" }[event.key];
      if (!to || !event.target.classList.contains("row")) return;
      const target = here[to];
      if (target) target.querySelector(".row").focus();
      event.preventDefault();
    });
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    form.addEventListener("submit", (event) => event.preventDefault());
    next.addEventListener("click", more);
    filter();
  }

  // -- light and dark -----------------------------------------------------------------------------------------------

  const root = document.documentElement;
  function setTheme(theme) {
    root.dataset.theme = theme;
    redraw();
  }
  byId("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));

  startCurves();
  startRollouts();
})();
