"""The program of the listening page, in JavaScript without packages."""

LISTENING_SCRIPT = """
const test = JSON.parse(document.getElementById("test").textContent);
const seed = Number(new URLSearchParams(location.search).get("seed") ?? test.seed) >>> 0;

// mulberry32: the same seed gives the same order in every browser.
let state = seed;
function random() {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
function shuffled(items) {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}
const trials = shuffled(test.trials).map((trial) => ({
  segment: trial.segment, reference: trial.reference, stimuli: shuffled(trial.stimuli),
}));

const place = document.getElementById("trial");
const started = new Date().toISOString();
const results = [];

function element(parent, tag, text, properties) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

function show(number) {
  const trial = trials[number];
  const begin = Date.now();
  place.replaceChildren();
  element(place, "h2", `Excerpt ${number + 1} of ${trials.length}`);
  let active = null;
  // All versions share one position, so that a switch compares the same moment.
  function button(label, file, whenStarted) {
    const audio = element(place, "audio", "", { src: file, loop: true, preload: "auto", className: "hidden" });
    const control = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    control.onclick = () => {
      const position = active ? active.audio.currentTime : 0;
      if (active) {
        active.audio.pause();
        active.control.classList.remove("active");
      }
      if (active && active.audio === audio) {
        active = null;
        return;
      }
      audio.currentTime = position;
      audio.play();
      control.classList.add("active");
      active = { audio, control };
      whenStarted();
    };
    return control;
  }
  const open = element(place, "p", "");
  open.append(button("Reference", trial.reference, () => {}));
  const rows = element(element(place, "table", ""), "tbody", "");
  const listened = new Set();
  const rated = new Map();
  const next = document.createElement("button");
  const update = () => { next.disabled = listened.size < trial.stimuli.length || rated.size < trial.stimuli.length; };
  trial.stimuli.forEach((stimulus, i) => {
    const row = element(rows, "tr", "");
    const control = button(String.fromCharCode(65 + i), stimulus.file, () => { listened.add(i); update(); });
    element(row, "th", "").append(control);
    const slider = element(element(row, "td", ""), "input", "", {
      type: "range", min: 0, max: 100, step: 1, value: 50, ariaLabel: `Rating of ${control.textContent}`,
    });
    const value = element(row, "td", "not rated", { className: "text" });
    slider.oninput = () => {
      rated.set(i, Number(slider.value));
      value.textContent = `${slider.value} ${test.grades[Math.min(4, Math.floor(slider.value / 20))]}`;
      update();
    };
  });
  Object.assign(next, { type: "button", textContent: number + 1 < trials.length ? "Next" : "Finish", id: "next" });
  next.onclick = () => {
    if (active) active.audio.pause();
    results.push({
      segment: trial.segment,
      order: trial.stimuli.map((stimulus) => stimulus.system),
      ratings: Object.fromEntries(trial.stimuli.map((stimulus, i) => [stimulus.system, rated.get(i)])),
      seconds: (Date.now() - begin) / 1000,
    });
    if (number + 1 < trials.length) show(number + 1); else finish();
  };
  element(place, "p", "").append(next);
  update();
}

function finish() {
  place.replaceChildren();
  element(place, "h2", "Finished");
  element(place, "p", "Save the ratings and send the file to the person who asked you.");
  const name = element(element(place, "p", "Your name or number: "), "input", "", { id: "listener", type: "text" });
  const save = element(element(place, "p", ""), "button", "Save the ratings", { type: "button", id: "save" });
  save.onclick = () => {
    const content = JSON.stringify({
      version: 1, test: test.test, seed, listener: name.value, started, finished: new Date().toISOString(),
      trials: results,
    }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `listening-${seed}.json`;
    link.click();
  };
}

document.getElementById("start").onclick = () => show(0);
"""
