// Makes likes on LiveStore, one by one, and prints what that took as a line of JSON: `node main.mjs DIRECTORY LIKES`. With no
// likes it only opens what is there. `main.rs` beside it does the same on likewise, and compares them.

import { makeAdapter } from '@livestore/adapter-node'
import { createStorePromise, Events, makeSchema, Schema, State } from '@livestore/livestore'

const [baseDirectory, likes] = process.argv.slice(2)

const likeAdded = Events.synced({ name: 'v1.LikeAdded', schema: Schema.Struct({}) })
const table = State.SQLite.table({
  name: 'likes',
  columns: { id: State.SQLite.integer({ primaryKey: true }), count: State.SQLite.integer() },
})
const materializers = State.SQLite.materializers({ likeAdded }, {
  'v1.LikeAdded': () => ({
    sql: 'INSERT INTO likes VALUES (1, 1) ON CONFLICT DO UPDATE SET count = count + 1',
    bindValues: {},
    writeTables: new Set(['likes']),
  }),
})
const state = State.SQLite.makeState({ tables: { likes: table }, materializers })
const schema = makeSchema({ events: { likeAdded }, state })

const seconds = (since) => (performance.now() - since) / 1e3
const start = performance.now()
const adapter = makeAdapter({ storage: { type: 'fs', baseDirectory } })
const store = await createStorePromise({ adapter, schema, storeId: 'likes' })
const opened = seconds(start)

const first = performance.now()
for (let n = 0; n < Number(likes); n++) {
  store.commit(likeAdded({}))
  // What it does after a commit has its turn, as between the clicks of a page.
  await new Promise(setImmediate)
}
const count = store.query(table)[0]?.count ?? 0
const memory = process.memoryUsage.rss()
await store.shutdownPromise()
console.log(JSON.stringify({ opened, liked: seconds(first), memory, count }))
process.exit(0)
