-- One growing number for the whole store instead of a version for each host; what a host carries
-- beside its record; documents for everything that is not a host.

-- The last number that was given, and how far back removals are remembered.
CREATE TABLE revision (
    one    INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    value  INTEGER NOT NULL,
    pruned INTEGER NOT NULL
);
INSERT INTO revision (one, value, pruned) SELECT 1, COALESCE(SUM(version), 0), 0 FROM hosts;
UPDATE hosts SET version = (SELECT value FROM revision) + rowid;
UPDATE revision SET value = (SELECT COALESCE(MAX(version), 0) FROM hosts);
UPDATE revision SET pruned = value;

ALTER TABLE hosts ADD COLUMN owner TEXT;
ALTER TABLE hosts ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
CREATE INDEX hosts_by_version ON hosts (version);

ALTER TABLE events ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;

-- What was removed, for those who follow changes from a revision.
CREATE TABLE removed (
    revision INTEGER PRIMARY KEY NOT NULL,
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    project  TEXT NOT NULL
);

-- Everything that is not a host: images, profiles, tokens, keys of answers given before.
CREATE TABLE documents (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    project  TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    expires  INTEGER,
    body     TEXT NOT NULL,
    sealed   BLOB,
    PRIMARY KEY (kind, name)
);
CREATE INDEX documents_by_revision ON documents (revision);

-- Who changed what; each entry's hash covers the one before.
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY NOT NULL,
    revision INTEGER NOT NULL,
    project  TEXT NOT NULL,
    body     TEXT NOT NULL,
    hash     TEXT NOT NULL
);

-- The last entry of the audit log, under the store's key: a cut tail is seen.
CREATE TABLE audit_head (
    one  INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    id   INTEGER NOT NULL,
    hash TEXT NOT NULL,
    mac  BLOB NOT NULL
);

-- From the last inspection.
CREATE TABLE inventories (
    uid  TEXT PRIMARY KEY NOT NULL,
    body TEXT NOT NULL
);

-- Where the seconds of each run went.
CREATE TABLE runs (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uid     TEXT NOT NULL,
    host    TEXT NOT NULL,
    project TEXT NOT NULL,
    started INTEGER NOT NULL,
    ended   INTEGER NOT NULL,
    body    TEXT NOT NULL
);
CREATE INDEX runs_by_host ON runs (uid, id);
CREATE INDEX runs_by_end ON runs (ended);

-- When a host was last heard: microseconds since 1970.
CREATE TABLE contacts (
    uid         TEXT PRIMARY KEY NOT NULL,
    agent_seen  INTEGER,
    daemon_seen INTEGER
);
