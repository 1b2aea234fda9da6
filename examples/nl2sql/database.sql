-- The sample warehouse: three years of sales of an outdoor retailer, as a star schema of seven tables.
--
-- Every choice is draw(label, i, n): a number in 0..n-1 that depends on the seed, the label and i alone. It comes
-- from MD5 and integer arithmetic, so that the rows are the same on every machine and in every version of DuckDB;
-- random() and hash() promise neither.
CREATE TEMP MACRO draw(label, i, n) AS
  CAST(md5_number_lower(concat(getvariable('seed'), '/', label, '/', i)) % CAST(n AS UBIGINT) AS INTEGER);
CREATE TEMP MACRO pick(label, i, choices) AS choices[1 + draw(label, i, len(choices))];

CREATE TABLE regions AS
SELECT CAST(row_number() OVER () AS INTEGER) AS region_id, country, region
FROM (VALUES
  ('Germany', 'Europe'), ('France', 'Europe'), ('Spain', 'Europe'), ('Sweden', 'Europe'), ('Poland', 'Europe'),
  ('United States', 'North America'), ('Canada', 'North America'), ('Mexico', 'North America'),
  ('Japan', 'Asia Pacific'), ('Australia', 'Asia Pacific'), ('India', 'Asia Pacific'), ('South Korea', 'Asia Pacific'),
  ('Brazil', 'Latin America'), ('Chile', 'Latin America'), ('Colombia', 'Latin America'), ('Peru', 'Latin America')
) AS listed(country, region);

-- Three stores in each country: 1..3 in the first, 4..6 in the second, and so on.
CREATE TABLE stores AS
SELECT
  CAST(store_id AS INTEGER) AS store_id,
  concat(city, ' ', channel) AS name,
  city,
  CAST((store_id - 1) // 3 + 1 AS INTEGER) AS region_id,
  channel,
  DATE '2012-01-01' + draw('store.opened', store_id, 3650) AS opened
FROM (
  SELECT
    row_number() OVER () AS store_id,
    city,
    ['Shop', 'Outlet', 'Online'][1 + CAST((row_number() OVER () - 1) % 3 AS INTEGER)] AS channel
  FROM (VALUES
    ('Berlin'), ('Hamburg'), ('Munich'), ('Paris'), ('Lyon'), ('Nantes'), ('Madrid'), ('Valencia'), ('Seville'),
    ('Stockholm'), ('Malmo'), ('Uppsala'), ('Warsaw'), ('Krakow'), ('Gdansk'), ('Denver'), ('Seattle'), ('Portland'),
    ('Vancouver'), ('Calgary'), ('Toronto'), ('Monterrey'), ('Puebla'), ('Merida'), ('Tokyo'), ('Osaka'), ('Sapporo'),
    ('Sydney'), ('Perth'), ('Brisbane'), ('Mumbai'), ('Pune'), ('Chennai'), ('Seoul'), ('Busan'), ('Daegu'),
    ('Recife'), ('Curitiba'), ('Salvador'), ('Santiago'), ('Temuco'), ('Arica'), ('Bogota'), ('Medellin'), ('Cali'),
    ('Lima'), ('Cusco'), ('Trujillo')
  ) AS listed(city)
);

CREATE TABLE customers AS
SELECT
  CAST(i AS INTEGER) AS customer_id,
  concat(
    pick('customer.first', i, ['Ada', 'Bruno', 'Chloe', 'Diego', 'Elin', 'Farid', 'Greta', 'Hugo', 'Ines', 'Jonas',
                               'Keiko', 'Liam', 'Mina', 'Nora', 'Omar', 'Paula', 'Ravi', 'Sofia', 'Tomas', 'Yuna']),
    ' ',
    pick('customer.last', i, ['Abel', 'Berg', 'Castro', 'Dahl', 'Eriksen', 'Fuchs', 'Garcia', 'Hansen', 'Ito', 'Jansen',
                              'Kim', 'Lopez', 'Moreau', 'Nowak', 'Okada', 'Patel', 'Quispe', 'Rossi', 'Silva', 'Weber'])
  ) AS name,
  pick('customer.segment', i, ['Consumer', 'Consumer', 'Consumer', 'Small Business', 'Small Business', 'Corporate'])
    AS segment,
  -- The product of two draws favours the countries listed first.
  CAST(1 + draw('customer.region', i, 16) * draw('customer.region.weight', i, 100) // 100 AS INTEGER) AS region_id,
  DATE '2020-01-01' + draw('customer.joined', i, 2160) AS joined,
  draw('customer.newsletter', i, 100) < 38 AS newsletter
FROM range(1, 12001) AS numbers(i);

-- The last twelve products have not been sold yet.
CREATE TABLE products AS
SELECT
  CAST(i AS INTEGER) AS product_id,
  concat(
    pick('product.word', i, ['Alpine', 'Basalt', 'Cedar', 'Delta', 'Ember', 'Fjord', 'Granite', 'Harbor', 'Juniper',
                             'Lichen', 'Meadow', 'Nimbus', 'Osprey', 'Pebble', 'Ridge', 'Summit', 'Tundra', 'Willow']),
    ' ', kind, ' ', i
  ) AS name,
  category,
  pick('product.brand', i, ['Norrvik', 'Terrana', 'Kestrel', 'Bluepeak', 'Oakline', 'Arroyo', 'Halden', 'Miru'])
    AS brand,
  CAST(price AS DECIMAL(8, 2)) AS list_price,
  CAST(price * (48 + draw('product.cost', i, 30)) * 0.01 AS DECIMAL(8, 2)) AS unit_cost,
  CASE WHEN i > 348 THEN DATE '2025-12-01' + draw('product.launched', i, 30)
       ELSE DATE '2016-01-01' + draw('product.launched', i, 2500) END AS launched
FROM (
  SELECT i, category, kind, (low * 100 + draw('product.price', i, (high - low) * 100)) * 0.01 AS price
  FROM range(1, 361) AS numbers(i)
  JOIN (VALUES
    (0, 'Tents', 'Tent', 90, 600), (1, 'Footwear', 'Boot', 40, 260), (2, 'Jackets', 'Jacket', 50, 420),
    (3, 'Backpacks', 'Pack', 30, 280), (4, 'Cooking', 'Stove', 12, 140), (5, 'Climbing', 'Rope', 15, 220),
    (6, 'Cycling', 'Helmet', 20, 310), (7, 'Accessories', 'Bottle', 5, 60)
  ) AS kinds(slot, category, kind, low, high) ON slot = i % 8
) AS priced
ORDER BY i;

-- One promotion starts every 45 days, and none overlaps the next.
CREATE TABLE promotions AS
SELECT
  CAST(i + 1 AS INTEGER) AS promotion_id,
  concat(['Winter', 'Thaw', 'Spring', 'Trail', 'Summer', 'Harvest', 'Autumn', 'Frost'][1 + CAST(i % 8 AS INTEGER)],
         ' ', 2023 + i // 8) AS name,
  pick('promotion.kind', i, ['Seasonal', 'Clearance', 'Loyalty', 'Launch']) AS kind,
  CAST(5 * (1 + draw('promotion.percent', i, 6)) AS INTEGER) AS percent_off,
  DATE '2023-01-01' + CAST(45 * i AS INTEGER) AS starts,
  DATE '2023-01-01' + CAST(45 * i + 17 + draw('promotion.days', i, 14) AS INTEGER) AS ends
FROM range(24) AS numbers(i);

-- An order has one to four lines, all of one customer, day and store; nobody buys before joining. The last thousand
-- customers never buy. One order in seven is placed outside the customer's own country.
CREATE TABLE sales AS
WITH orders AS (
  SELECT
    i AS order_id,
    customer_id,
    since + draw('order.day', i, DATE '2025-12-31' - since + 1) AS sold_on,
    CASE WHEN draw('order.abroad', i, 7) = 0 THEN 1 + draw('order.store', i, 48)
         ELSE 3 * (region_id - 1) + 1 + draw('order.store', i, 3) END AS store_id,
    1 + draw('order.lines', i, 4) AS lines
  FROM range(1, 96001) AS numbers(i)
  JOIN (SELECT customer_id, region_id, greatest(joined, DATE '2023-01-01') AS since FROM customers) AS buyers
    ON customer_id = 1 + draw('order.customer', i, 11000)
), lines AS (
  SELECT
    order_id * 4 + line AS id,
    orders.*,
    CAST(1 + draw('line.product', order_id * 4 + line, 348)
         * draw('line.product.weight', order_id * 4 + line, 1000) // 1000 AS INTEGER) AS product_id,
    1 + draw('line.quantity', order_id * 4 + line, 4) * draw('line.quantity.weight', order_id * 4 + line, 3) // 2
      AS quantity
  FROM orders, unnest(range(orders.lines)) AS numbered(line)
)
SELECT
  CAST(row_number() OVER (ORDER BY id) AS INTEGER) AS sale_id,
  CAST(order_id AS INTEGER) AS order_id,
  sold_on,
  CAST(lines.customer_id AS INTEGER) AS customer_id,
  lines.product_id,
  CAST(lines.store_id AS INTEGER) AS store_id,
  promotions.promotion_id,
  CAST(lines.quantity AS INTEGER) AS quantity,
  CAST(list_price * (1.00 + 0.03 * (year(sold_on) - 2023)) AS DECIMAL(8, 2)) AS unit_price,
  CAST(lines.quantity * CAST(list_price * (1.00 + 0.03 * (year(sold_on) - 2023)) AS DECIMAL(8, 2))
       * (100 - coalesce(percent_off, 0)) * 0.01 AS DECIMAL(10, 2)) AS net_amount
FROM lines
JOIN products USING (product_id)
LEFT JOIN promotions
  ON sold_on BETWEEN starts AND ends AND draw('line.promotion', id, 100) < 40
ORDER BY id;

-- About one line in sixteen comes back; of lines with several pieces, some come back in two parts.
CREATE TABLE returns AS
WITH parts AS (
  SELECT sale_id, sold_on, quantity AS bought, net_amount, part,
         quantity >= 2 AND draw('return.parts', sale_id, 3) = 0 AS split
  FROM sales, unnest([1, 2]) AS numbered(part)
  WHERE draw('return.happens', sale_id, 16) = 0
), sized AS (
  SELECT *, CASE WHEN NOT split THEN bought WHEN part = 1 THEN 1 ELSE bought - 1 END AS quantity,
         sold_on + 1 + draw(concat('return.days.', part), sale_id, 30) AS returned_on
  FROM parts
  WHERE part = 1 OR split
)
SELECT
  CAST(row_number() OVER (ORDER BY sale_id, part) AS INTEGER) AS return_id,
  sale_id,
  returned_on,
  CAST(quantity AS INTEGER) AS quantity,
  pick('return.reason', concat(sale_id, '.', part),
       ['Wrong size', 'Wrong size', 'Defective', 'Changed mind', 'Changed mind', 'Late delivery', 'Not as described'])
    AS reason,
  -- The integer quotient in cents, so that no floating-point division rounds.
  CAST((CAST(net_amount * 100 AS BIGINT) * quantity // bought) * 0.01 AS DECIMAL(10, 2)) AS refund
FROM sized
WHERE returned_on <= DATE '2025-12-31'
ORDER BY sale_id, part;

COMMENT ON TABLE regions IS 'Countries and the sales region each belongs to';
COMMENT ON COLUMN regions.region_id IS 'Key';
COMMENT ON COLUMN regions.country IS 'Country, in English: Germany, Japan, ...';
COMMENT ON COLUMN regions.region IS 'Europe, North America, Asia Pacific or Latin America';
COMMENT ON TABLE stores IS 'Where an order was placed';
COMMENT ON COLUMN stores.store_id IS 'Key';
COMMENT ON COLUMN stores.name IS 'City and channel, e.g. Berlin Shop';
COMMENT ON COLUMN stores.city IS 'City';
COMMENT ON COLUMN stores.region_id IS 'Country of the store: regions.region_id';
COMMENT ON COLUMN stores.channel IS 'Shop, Outlet or Online';
COMMENT ON COLUMN stores.opened IS 'First day of business';
COMMENT ON TABLE customers IS 'Everyone who opened an account; some have never bought';
COMMENT ON COLUMN customers.customer_id IS 'Key';
COMMENT ON COLUMN customers.name IS 'Full name, not unique';
COMMENT ON COLUMN customers.segment IS 'Consumer, Small Business or Corporate';
COMMENT ON COLUMN customers.region_id IS 'Home country of the customer: regions.region_id';
COMMENT ON COLUMN customers.joined IS 'Day the account was opened';
COMMENT ON COLUMN customers.newsletter IS 'Whether the customer takes the newsletter';
COMMENT ON TABLE products IS 'The catalogue; some products have never been sold';
COMMENT ON COLUMN products.product_id IS 'Key';
COMMENT ON COLUMN products.name IS 'Unique name';
COMMENT ON COLUMN products.category IS 'Tents, Footwear, Jackets, Backpacks, Cooking, Climbing, Cycling or Accessories';
COMMENT ON COLUMN products.brand IS 'Maker, e.g. Norrvik';
COMMENT ON COLUMN products.list_price IS 'Catalogue price of one piece in 2023';
COMMENT ON COLUMN products.unit_cost IS 'What one piece costs us';
COMMENT ON COLUMN products.launched IS 'Day it entered the catalogue';
COMMENT ON TABLE promotions IS 'Discount campaigns; no two overlap';
COMMENT ON COLUMN promotions.promotion_id IS 'Key';
COMMENT ON COLUMN promotions.name IS 'Season and year, e.g. Winter 2023';
COMMENT ON COLUMN promotions.kind IS 'Seasonal, Clearance, Loyalty or Launch';
COMMENT ON COLUMN promotions.percent_off IS 'Discount on the price, in percent';
COMMENT ON COLUMN promotions.starts IS 'First day';
COMMENT ON COLUMN promotions.ends IS 'Last day, included';
COMMENT ON TABLE sales IS 'One row per order line, 2023-01-01 to 2025-12-31';
COMMENT ON COLUMN sales.sale_id IS 'Key of the order line';
COMMENT ON COLUMN sales.order_id IS 'The order; an order has one to four lines';
COMMENT ON COLUMN sales.sold_on IS 'Day of the order';
COMMENT ON COLUMN sales.customer_id IS 'Buyer: customers.customer_id';
COMMENT ON COLUMN sales.product_id IS 'What was bought: products.product_id';
COMMENT ON COLUMN sales.store_id IS 'Where: stores.store_id';
COMMENT ON COLUMN sales.promotion_id IS 'Promotion applied, NULL when none: promotions.promotion_id';
COMMENT ON COLUMN sales.quantity IS 'Pieces bought';
COMMENT ON COLUMN sales.unit_price IS 'Price of one piece that day, before the discount';
COMMENT ON COLUMN sales.net_amount IS 'Revenue of the line after the discount, before returns';
COMMENT ON TABLE returns IS 'Pieces that came back; one order line can come back in several rows';
COMMENT ON COLUMN returns.return_id IS 'Key';
COMMENT ON COLUMN returns.sale_id IS 'The order line: sales.sale_id';
COMMENT ON COLUMN returns.returned_on IS 'Day of the return';
COMMENT ON COLUMN returns.quantity IS 'Pieces returned';
COMMENT ON COLUMN returns.reason IS 'Wrong size, Defective, Changed mind, Late delivery or Not as described';
COMMENT ON COLUMN returns.refund IS 'Money paid back';
