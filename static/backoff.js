// How long to wait before trying again. Streams and posts use the same pace.

/** Milliseconds to wait after the nth failure in a row: 0.3 s doubling up to 5 s, less up to half of it by chance. */
export function backoff(failures) {
  return Math.min(5_000, 300 * 2 ** Math.min(failures - 1, 10)) * (1 - Math.random() / 2);
}
