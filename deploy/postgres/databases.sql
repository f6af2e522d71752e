-- POSTGRES_DB makes the ledger's database; this one is for the books of the simulated services.
CREATE DATABASE shop;
