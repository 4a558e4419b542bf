
(function () {
  "use strict";
  var live = document.getElementById("live");
  function again(seconds) {
    setTimeout(function () { location.reload(); }, seconds * 1000);
  }
  if (!live || !window.EventSource) {
    again(5);
    return;
  }
  // The server renders the page. A new status is only a reason to load the page again.
  var source = new EventSource(live.getAttribute("data-stream"));
  source.addEventListener("status", function (event) {
    if (JSON.parse(event.data).version > Number(live.getAttribute("data-version"))) {
      source.close();
      location.reload();
    }
  });
  source.onerror = function () {
    if (source.readyState === EventSource.CLOSED) {
      again(10);
    }
  };
})();
