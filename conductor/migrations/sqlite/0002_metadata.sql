-- What every resource has: whom it belongs to, what it is selected by, what people note on it.
ALTER TABLE hosts ADD COLUMN project TEXT NOT NULL DEFAULT 'default';
ALTER TABLE hosts ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE hosts ADD COLUMN annotations TEXT NOT NULL DEFAULT '{}';
