-- Hosts: what people want and see (spec, status), what the conductor keeps beside it (runtime),
-- sealed secrets, and the columns that are searched. version guards against lost updates.
CREATE TABLE hosts (
    name        TEXT PRIMARY KEY NOT NULL,
    uid         TEXT NOT NULL UNIQUE,
    version     INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    created     TEXT NOT NULL,
    state       TEXT NOT NULL,
    boot_mac    TEXT UNIQUE,
    bmc_address TEXT NOT NULL UNIQUE,
    spec        TEXT NOT NULL,
    status      TEXT NOT NULL,
    runtime     TEXT NOT NULL,
    secrets     BLOB NOT NULL
);

-- What happened to a host; only ever added to.
CREATE TABLE events (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    host TEXT NOT NULL,
    at   TEXT NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX events_by_host ON events (host, id);
