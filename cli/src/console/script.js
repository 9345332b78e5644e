// Replaces the part of the page that changes. Without this script the page is complete, but not live.
"use strict";
const live = document.getElementById("live");
const connection = document.getElementById("connection");
if (live) {
  const events = new EventSource(location.pathname.replace(/\/$/, "") + "/events");
  events.addEventListener("state", (event) => {
    const open = new Set([...live.querySelectorAll("details[open]")].map((one) => one.id));
    live.innerHTML = event.data;
    live.querySelectorAll("details").forEach((one) => { one.open = open.has(one.id); });
    connection.textContent = "live";
  });
  events.addEventListener("open", () => { connection.textContent = "live"; });
  events.addEventListener("error", () => { connection.textContent = "not connected: the page shows an old state"; });
}
