CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, price REAL);
CREATE TABLE sale(item INTEGER, day INTEGER, amount INTEGER);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
INSERT INTO item SELECT i, i * 7919 % 31, printf('item-%05d', i * 7907 % 4001), (i * 104729 % 10007) / 100.0 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
INSERT INTO sale SELECT i * 7919 % 4000 + 1, i % 365, i * 31 % 17 FROM n;
COMMIT;
CREATE INDEX by_kind ON item(kind, price);
CREATE INDEX by_item ON sale(item);
SELECT kind, count(*), round(sum(price), 2), min(name) FROM item GROUP BY kind ORDER BY kind;
SELECT i.kind, sum(s.amount), round(sum(s.amount * i.price), 2) FROM sale s JOIN item i ON i.id = s.item GROUP BY i.kind ORDER BY 2 DESC, 1;
SELECT count(*) FROM item WHERE name LIKE '%12%';
UPDATE item SET price = price * 1.5 WHERE kind % 3 = 1;
DELETE FROM sale WHERE day % 5 = 2;
SELECT name, price FROM item WHERE kind BETWEEN 5 AND 9 ORDER BY price DESC, name LIMIT 20;
SELECT round(total(price), 2), group_concat(substr(name, 6, 2), '') FROM item WHERE id % 97 = 3;
SELECT day % 7, sum(amount) FROM sale GROUP BY 1 ORDER BY 1;
