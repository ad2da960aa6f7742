const place = document.getElementById("live");
let known = null;
function line(run) {
  const box = document.createElement("div");
  box.className = "running";
  const share = run.total > 0 ? Math.min(1, run.done / run.total) : 0;
  const words = document.createElement("p");
  words.textContent = `${run.id} · ${run.technique}: ${run.what} (${Math.round(100 * share)}%, ${Math.round(run.seconds)} s)`;
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = share;
  box.append(words, bar);
  return box;
}
async function look() {
  try {
    const found = await (await fetch("/live")).json();
    const none = document.createElement("p");
    none.textContent = "Nothing is running.";
    place.replaceChildren(...(found.running.length ? found.running.map(line) : [none]));
    if (known !== null && found.runs !== known) location.reload();
    known = found.runs;
  } catch {
    place.textContent = "The viewer has been stopped.";
  }
}
look();
setInterval(look, 1000);
