-- The same tables as SQLite's, after all of its migrations.

-- The last number that was given, and how far back removals are remembered. Whoever writes takes
-- this row first: numbers are given in the order of commits.
CREATE TABLE revision (
    one    BIGINT PRIMARY KEY NOT NULL CHECK (one = 1),
    value  BIGINT NOT NULL,
    pruned BIGINT NOT NULL
);
INSERT INTO revision (one, value, pruned) VALUES (1, 0, 0);

CREATE TABLE hosts (
    name        TEXT PRIMARY KEY NOT NULL,
    uid         TEXT NOT NULL UNIQUE,
    version     BIGINT NOT NULL,
    generation  BIGINT NOT NULL,
    created     TEXT NOT NULL,
    state       TEXT NOT NULL,
    boot_mac    TEXT UNIQUE,
    bmc_address TEXT NOT NULL UNIQUE,
    spec        TEXT NOT NULL,
    status      TEXT NOT NULL,
    runtime     TEXT NOT NULL,
    secrets     BYTEA NOT NULL,
    project     TEXT NOT NULL DEFAULT 'default',
    labels      TEXT NOT NULL DEFAULT '{}',
    annotations TEXT NOT NULL DEFAULT '{}',
    owner       TEXT,
    fence       BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX hosts_by_version ON hosts (version);

CREATE TABLE events (
    id       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host     TEXT NOT NULL,
    at       TEXT NOT NULL,
    kind     TEXT NOT NULL,
    text     TEXT NOT NULL,
    revision BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX events_by_host ON events (host, id);

CREATE TABLE removed (
    revision BIGINT PRIMARY KEY NOT NULL,
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    project  TEXT NOT NULL
);

CREATE TABLE documents (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    project  TEXT NOT NULL,
    revision BIGINT NOT NULL,
    created  BIGINT NOT NULL,
    expires  BIGINT,
    body     TEXT NOT NULL,
    sealed   BYTEA,
    PRIMARY KEY (kind, name)
);
CREATE INDEX documents_by_revision ON documents (revision);

CREATE TABLE audit (
    id       BIGINT PRIMARY KEY NOT NULL,
    revision BIGINT NOT NULL,
    project  TEXT NOT NULL,
    body     TEXT NOT NULL,
    hash     TEXT NOT NULL
);

CREATE TABLE audit_head (
    one  BIGINT PRIMARY KEY NOT NULL CHECK (one = 1),
    id   BIGINT NOT NULL,
    hash TEXT NOT NULL,
    mac  BYTEA NOT NULL
);

CREATE TABLE inventories (
    uid  TEXT PRIMARY KEY NOT NULL,
    body TEXT NOT NULL
);

CREATE TABLE runs (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uid     TEXT NOT NULL,
    host    TEXT NOT NULL,
    project TEXT NOT NULL,
    started BIGINT NOT NULL,
    ended   BIGINT NOT NULL,
    body    TEXT NOT NULL
);
CREATE INDEX runs_by_host ON runs (uid, id);
CREATE INDEX runs_by_end ON runs (ended);

CREATE TABLE contacts (
    uid         TEXT PRIMARY KEY NOT NULL,
    agent_seen  BIGINT,
    daemon_seen BIGINT
);

-- Conductors at work, each as long as it renews; hosts.owner names one of them.
CREATE TABLE replicas (
    id      TEXT PRIMARY KEY NOT NULL,
    renewed BIGINT NOT NULL
);

-- A fence only grows: whoever writes with an older one is refused, whatever its statement says.
CREATE FUNCTION refuse_older_fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'host % has fence %, not %', OLD.name, OLD.fence, NEW.fence;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER hosts_fence BEFORE UPDATE ON hosts
    FOR EACH ROW EXECUTE FUNCTION refuse_older_fence();
