// Replaces the part of the page that changes. Without this script the page is complete, but not live.
"use strict";
const live = document.getElementById("live");
const connection = document.getElementById("connection");
// What has the focus, so that its successor in the new part can get it.
const key = (one) => [one.tagName, one.id, one.getAttribute("href"), one.getAttribute("aria-label"), one.closest("details")?.id].join();
function replace(html) {
  const focused = live.contains(document.activeElement) ? key(document.activeElement) : null;
  const open = new Set([...live.querySelectorAll("details[open]")].map((one) => one.id));
  live.innerHTML = html;
  live.querySelectorAll("details").forEach((one) => { one.open = open.has(one.id); });
  if (focused) [...live.querySelectorAll("a, summary, [tabindex]")].find((one) => key(one) === focused)?.focus({ preventScroll: true });
  connection.textContent = "live";
}
const away = "not connected: the page shows an old state";
if (live && live.dataset.polls) {
  const part = location.pathname.replace(/\/$/, "") + "/part";
  setInterval(async () => {
    try { replace(await (await fetch(part)).text()); } catch { connection.textContent = away; }
  }, 1000 * live.dataset.polls);
  connection.textContent = "live";
} else if (live) {
  connection.textContent = "connecting";
  const events = new EventSource(location.pathname.replace(/\/$/, "") + "/events");
  events.addEventListener("state", (event) => { replace(event.data); });
  events.addEventListener("open", () => { connection.textContent = "live"; });
  events.addEventListener("error", () => { connection.textContent = away; });
}
