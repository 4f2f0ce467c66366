-- Lines of the logs of hosts that were removed, until every webhook has told them.
CREATE TABLE departed (
    id       BIGINT PRIMARY KEY NOT NULL,
    host     TEXT NOT NULL,
    at       TEXT NOT NULL,
    kind     TEXT NOT NULL,
    text     TEXT NOT NULL,
    revision BIGINT NOT NULL,
    removed  BIGINT NOT NULL
);
