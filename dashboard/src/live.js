// Keeps an open page current: swaps in the parts the server drew anew, and lets ages grow. The page works without it.
"use strict";
(() => {
  const light = document.getElementById("live");
  const show = (words, state) => { light.textContent = words; light.className = "live " + state; };

  const age = (milliseconds) => {
    const seconds = Math.max(0, Math.floor(milliseconds / 1000));
    if (seconds < 120) return seconds + " s";
    const minutes = Math.floor(seconds / 60);
    if (minutes < 120) return minutes + " min";
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? hours + " h" : Math.floor(hours / 24) + " d";
  };
  const ages = (within) => {
    for (const time of within.querySelectorAll("time[datetime]")) {
      const at = Date.parse(time.dateTime);
      if (!Number.isNaN(at)) time.textContent = age(Date.now() - at);
    }
  };
  ages(document);
  setInterval(() => ages(document), 1000);

  const namespace = document.body.dataset.namespace;
  let stream = null;
  const open = () => {
    stream = new EventSource("/live" + (namespace ? "?namespace=" + encodeURIComponent(namespace) : ""));
    stream.onopen = () => show("live", "on");
    // The browser tries again by itself.
    stream.onerror = () => show("no connection", "off");
    stream.addEventListener("part", (event) => {
      const part = JSON.parse(event.data);
      const place = document.getElementById(part.id);
      if (!place) return;
      // A selection somebody is making is worth more than the newest second.
      const chosen = document.getSelection();
      if (chosen && !chosen.isCollapsed && place.contains(chosen.anchorNode)) return;
      place.innerHTML = part.html;
      ages(place);
    });
  };
  show("connecting", "");
  open();
  // A page nobody sees needs no stream.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && stream) { stream.close(); stream = null; show("asleep", ""); }
    else if (!document.hidden && !stream) open();
  });
})();
