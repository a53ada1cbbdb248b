// The endpoint as the page asks it: one way to ask, one kind of failure.

const PATIENCE_MS = 60_000;
const TOKEN = "igd-token";

/** Anything that kept an answer from coming. */
export class Fault extends Error {
  /**
   * @param {{code: string, detail?: string, requestId?: string, lasting?: boolean}} what
   *   lasting: the same would come of another try
   */
  constructor({ code, detail = "", requestId = "", lasting = false }) {
    super(`${code}: ${detail}`);
    Object.assign(this, { code, detail, requestId, lasting });
  }
}

/** @param ask asks a person for a token: (wrong: boolean) => Promise<string | null> */
export class Endpoint {
  constructor(ask) {
    this.ask = ask;
    this.asking = null;
  }

  get token() {
    return sessionStorage.getItem(TOKEN);
  }

  forget() {
    sessionStorage.removeItem(TOKEN);
  }

  /** What is known of every category. */
  async categories() {
    return (await this.#request("v1/categories", {})).details;
  }

  /**
   * Scores an image.
   * @param heatmap "png", or "overlay" for what this browser cannot show
   * @param busy told the seconds until the one other try, where the endpoint has no place
   * @returns {{reply: object, roundTrip: number}} roundTrip in milliseconds, of the try answered
   */
  async score(category, body, heatmap, busy) {
    const path = `v1/categories/${encodeURIComponent(category)}/score?heatmap=${heatmap}`;
    const headers = { "content-type": "application/octet-stream" };
    let began;
    const reply = await this.#request(path, { method: "POST", body, headers }, {
      busy, before: () => { began = performance.now(); } });
    return { reply, roundTrip: performance.now() - began };
  }

  async #request(path, options, { busy = () => {}, before = () => {} } = {}) {
    for (let waited = false; ;) {
      const token = this.token;
      before();
      const reply = await send(path, options, token);
      if (reply.ok) return answer(reply);
      if (reply.status === 401) {
        await this.#renew(token);
      } else if (reply.status === 503 && !waited) {
        waited = true;
        const seconds = Math.min(Number(reply.headers.get("retry-after")) || 1, 30);
        busy(seconds);
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      } else {
        throw await faultOf(reply);
      }
    }
  }

  /** Another token than the one refused; one person is asked once, however many requests wait. */
  async #renew(refused) {
    if (this.token !== refused) return;
    this.asking ??= this.ask(refused !== null).finally(() => { this.asking = null; });
    const token = await this.asking;
    if (token === null) throw new Fault({ code: "unauthorized" });
    sessionStorage.setItem(TOKEN, token);
  }
}

async function send(path, options, token) {
  const headers = { ...options.headers };
  if (token !== null) headers.authorization = `Bearer ${token}`;
  try {
    return await fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch (error) {
    throw new Fault({ code: error.name === "TimeoutError" ? "timeout" : "unreachable",
      detail: error.name === "TimeoutError" ? `not within ${PATIENCE_MS / 1000} s`
        : "It may have stopped, or the connection is down." });
  }
}

async function answer(reply) {
  try {
    return await reply.json();
  } catch {
    throw new Fault({ code: "unreachable", detail: "Its answer broke off, or is another’s." });
  }
}

async function faultOf(reply) {
  const lasting = reply.status < 500 && ![401, 408, 429].includes(reply.status);
  try {
    const { error, code, request_id: requestId } = await reply.json();
    return new Fault({ code, detail: error, requestId, lasting });
  } catch {  // not ours: a proxy's page
    return new Fault({ code: `http_${reply.status}`, lasting,
      detail: `${reply.status} ${reply.statusText}` });
  }
}
