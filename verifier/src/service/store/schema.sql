-- The verifier's state, schema version 4. Times are seconds since 1970; digests are hex unless BLOB.

-- TPMs that an operator let in, one by one, each as one host. An admission of version 2 whose TPM never enrolled has no
-- host: it admits nothing until an operator names one.
CREATE TABLE admissions (
    ek          TEXT PRIMARY KEY CHECK (length(ek) = 64),
    note        TEXT NOT NULL,
    admitted_by TEXT NOT NULL,
    admitted_at INTEGER NOT NULL,
    host        TEXT,
    -- Of a host that was forgotten, for its TPM's next enrolment: as in hosts.
    banks       TEXT,
    certificate TEXT CHECK (certificate IS NULL OR certificate IN ('verified', 'none')),
    ek_certificate BLOB,
    cordon      TEXT
) STRICT;
CREATE UNIQUE INDEX one_tpm_a_host ON admissions (host);

-- Enrolled hosts. trusted_until is set by good evidence only and cleared by bad evidence at once.
CREATE TABLE hosts (
    host          TEXT PRIMARY KEY,
    ek            TEXT NOT NULL UNIQUE CHECK (length(ek) = 64),
    ek_public     BLOB NOT NULL,
    certificate   TEXT NOT NULL CHECK (certificate IN ('verified', 'none')),
    ak_public     BLOB NOT NULL,
    ak_name       TEXT NOT NULL UNIQUE,
    enrolled_at   INTEGER NOT NULL,
    tls_spki      BLOB CHECK (tls_spki IS NULL OR length(tls_spki) = 32),
    judged        TEXT,
    boot          TEXT,
    trusted_until INTEGER,
    attested_at   INTEGER,
    reasons       TEXT NOT NULL DEFAULT '[]',
    cordon        TEXT,
    generation    INTEGER NOT NULL DEFAULT 0,
    -- Kept to see later whether it was revoked.
    ek_certificate BLOB,
    -- JSON: the PCR banks that were active at enrolment, and whether the firmware measured into them. Without it, or when
    -- an operator accepts others, the host has to enrol again.
    banks         TEXT,
    -- By what the last good evidence was judged: SHA-256 of the policy, and who signed the reference values.
    judged_policy TEXT,
    judged_signer TEXT
) STRICT;

-- Credential challenges that were not answered yet. The secret itself is not kept.
CREATE TABLE enrolments (
    id            TEXT PRIMARY KEY,
    host          TEXT NOT NULL,
    ek            TEXT NOT NULL,
    ek_public     BLOB NOT NULL,
    certificate   TEXT NOT NULL,
    ak_public     BLOB NOT NULL,
    ak_name       TEXT NOT NULL,
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),
    tls_spki      BLOB NOT NULL CHECK (length(tls_spki) = 32),
    expires_at    INTEGER NOT NULL,
    ek_certificate BLOB
) STRICT;

CREATE TABLE nonces (
    nonce      BLOB PRIMARY KEY CHECK (length(nonce) = 32),
    host       TEXT NOT NULL,
    purpose    TEXT NOT NULL,
    tls_spki   BLOB NOT NULL CHECK (length(tls_spki) = 32),
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX nonces_by_host ON nonces (host, tls_spki);

CREATE TABLE volumes (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    sealed_key BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    -- JSON: by what a host must have been judged to get the key.
    pins       TEXT NOT NULL DEFAULT '{"policies":[],"signers":[]}',
    PRIMARY KEY (tenant, name)
) STRICT;

CREATE TABLE orders (
    id         TEXT PRIMARY KEY CHECK (length(id) = 32),
    host       TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    volume     TEXT NOT NULL,
    vm         TEXT NOT NULL,
    boot       TEXT NOT NULL,
    jws        TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('placed', 'released', 'running', 'ended')),
    placed_at  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    detail     TEXT NOT NULL DEFAULT '',
    FOREIGN KEY (tenant, volume) REFERENCES volumes (tenant, name)
) STRICT;
CREATE INDEX orders_by_host ON orders (host, state);
-- One volume, one host: also if everything above this failed to see it.
CREATE UNIQUE INDEX one_host_a_volume ON orders (tenant, volume) WHERE state IN ('released', 'running');

-- Which key went where. Its row and the order's new state are one transaction.
CREATE TABLE releases (
    order_id    TEXT PRIMARY KEY REFERENCES orders (id),
    boot        TEXT NOT NULL,
    tls_spki    BLOB NOT NULL,
    released_at INTEGER NOT NULL
) STRICT;

-- What hosts said became of their orders, with the quote that signs it.
CREATE TABLE receipts (
    order_id    TEXT NOT NULL REFERENCES orders (id),
    event       TEXT NOT NULL CHECK (event IN ('started', 'ended')),
    receipt     TEXT NOT NULL,
    quotes      TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (order_id, event)
) STRICT;
