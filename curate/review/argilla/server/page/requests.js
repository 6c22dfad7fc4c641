// The requests of the page → events: an answer is being saved, was saved or was not; the annotator's counts.

const SAVE = /^\/api\/v1\/(records\/[^/]+\/responses|responses\/[^/]+|me\/responses\/bulk)$/;
const COUNTS = /^\/api\/v1\/me\/datasets\/[^/]+\/metrics$/;

/**
 * Call `listener.saving(request)`, `listener.saved(request)`, `listener.notSaved(request)` and
 * `listener.counted(counts)`. A request has `method`, `path`, `body` and, when it ended, `status`; 0: no answer.
 */
export function watchRequests(listener) {
  const { open, send } = XMLHttpRequest.prototype;

  XMLHttpRequest.prototype.open = function (method, url, ...others) {
    this.curate = { method: method.toUpperCase(), path: new URL(url, document.baseURI).pathname, body: null, status: 0 };
    // Added before the page's own handlers, so that the outcome is known when the page continues.
    this.addEventListener("readystatechange", () => this.readyState === 4 && ended(this, listener));
    return open.call(this, method, url, ...others);
  };

  XMLHttpRequest.prototype.send = function (body) {
    this.curate.body = body ?? null;
    if (isSave(this.curate)) listener.saving(this.curate);
    return send.call(this, body);
  };
}

function isSave(request) {
  return request.method !== "GET" && SAVE.test(request.path);
}

function ended(xhr, listener) {
  const request = xhr.curate;
  request.status = xhr.status;
  const succeeded = xhr.status >= 200 && xhr.status < 300;
  if (isSave(request)) (succeeded ? listener.saved : listener.notSaved)(request);
  else if (succeeded && COUNTS.test(request.path)) listener.counted(JSON.parse(xhr.responseText).responses);
}
