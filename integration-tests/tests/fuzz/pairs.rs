//! Pairs of column types with a mapping there and back, and values that are odd for them.

/// What moves: `old_c` to `new_c`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) old: &'static str,
    pub(crate) new: &'static str,
    pub(crate) forward: &'static str,
    pub(crate) backward: &'static str,
    /// SQL expressions of the old type. A value that does not survive the way there and back is left out.
    pub(crate) values: &'static [&'static str],
    /// A value that `forward` cannot map.
    pub(crate) unmappable: Option<&'static str>,
}

pub(crate) const fn pair(
    old: &'static str,
    new: &'static str,
    forward: &'static str,
    backward: &'static str,
    values: &'static [&'static str],
) -> Pair {
    Pair { old, new, forward, backward, values, unmappable: None }
}

pub(crate) const fn partial(pair: Pair, unmappable: &'static str) -> Pair {
    Pair { unmappable: Some(unmappable), ..pair }
}

/// Types, functions and a table that the pairs use.
pub(crate) const PREPARE: &str = "create type mood as enum ('low', 'so so', 'High'); \
    create domain short_text as text check (length(value) < 40); \
    create domain positive as integer check (value > 0); \
    create domain label as varchar(12) default 'none'; \
    create type amount as (value numeric, unit text); \
    create function strict_code(text) returns integer language plpgsql immutable as $$ begin \
        if $1 !~ '^ *-?[0-9]+ *$' then raise exception 'no code: %', $1; end if; return $1::integer; end $$; \
    create table moods (id integer primary key, name text not null unique); insert into moods values (1, 'low'), (2, 'so so'), (3, 'High'); grant select, references on moods to public";

impl Pair {
    /// Whether the new side refers to the lookup table.
    pub(crate) fn looks_up(&self) -> bool {
        self.backward.contains("case new_c when 1 then 'low'")
    }
}

pub(crate) const TEXTS: &[&str] = &[
    "' PAID '",
    "'paid'",
    "''",
    "' '",
    "null",
    "E'a\\tb\\n'",
    "'Äpfel ß'",
    "repeat('x ', 1500)",
    "E'back\\\\slash, \"quoted\" ''single'''",
    "'{a,b}'",
    "'null'",
    "'%s'",
];

// These have a twin in Rust (`rust_pairs`), with the same result.
pub(crate) const INTEGER_TO_BIGINT: Pair =
    pair("integer", "bigint", "old_c::bigint", "new_c::integer", &["0", "-1", "2147483647", "null"]);
pub(crate) const TEXT_TO_INTEGER: Pair =
    pair("text", "integer", "old_c::integer", "new_c::text", &["' 12 '", "'007'", "null", "'-3'"]);
pub(crate) const BYTES_TO_HEX: Pair = pair(
    "bytea",
    "text",
    "encode(old_c, 'hex')",
    "decode(new_c, 'hex')",
    &["'\\x00ff'", "''", "null", "'abc\\000'"],
);
pub(crate) const TEXTS_TO_JSON: Pair = pair(
    "text[]",
    "jsonb",
    "to_jsonb(old_c)",
    "case when new_c is null then null else array(select jsonb_array_elements_text(new_c)) end",
    &["'{}'", "'{a,NULL,\"b c\"}'", "null", "array['{', ',', E'\\\\']"],
);
pub(crate) const FLAG_TO_TEXT: Pair = pair(
    "boolean",
    "text",
    "case when old_c then 'yes' else 'no' end",
    "new_c = 'yes'",
    &["true", "false", "null"],
);

pub(crate) const PAIRS: &[Pair] = &[
    pair("text", "text", "lower(trim(old_c))", "upper(new_c)", TEXTS),
    pair("text collate \"C\"", "text", "old_c", "new_c", TEXTS),
    // A pattern with a backslash.
    pair(
        "text",
        "varchar",
        r"regexp_replace(old_c, '\s+', '_', 'g')",
        "new_c",
        &["'a  b'", "E'\\tx'", "'s s'", "'a_b'", "null"],
    ),
    pair("varchar(40)", "text", "lower(old_c)", "upper(new_c)", &["'Ab'", "' x '", "''", "null", "E'\\t'"]),
    pair("char(10)", "varchar(10)", "old_c", "new_c", &["'ab'", "'ab  '", "''", "null", "' a'"]),
    pair("text", "char(12)", "lower(old_c)", "upper(new_c)", &["'ab'", "'AB'", "''", "null"]),
    INTEGER_TO_BIGINT,
    pair(
        "integer",
        "numeric(12,2)",
        "old_c / 100.0",
        "(new_c * 100)::integer",
        &["0", "-1", "99999", "null", "1250"],
    ),
    pair(
        "numeric",
        "numeric(12,2)",
        "old_c",
        "new_c",
        &["1", "1.0", "1.000", "1.005", "'NaN'", "-0.001", "null"],
    ),
    pair("numeric(10,3)", "numeric", "old_c * 1.0", "new_c", &["1", "1.5", "'NaN'", "null", "-99.999"]),
    pair(
        "numeric",
        "text",
        "old_c::text",
        "new_c::numeric",
        &["1.0", "1.00", "1e20", "'NaN'", "null", "-0.10"],
    ),
    pair(
        "timestamptz",
        "timestamptz(3)",
        "old_c",
        "new_c",
        &["'infinity'", "'-infinity'", "'2024-02-29 23:59:59.123456+05'", "null", "'0044-03-15 12:00 BC'"],
    ),
    pair(
        "timestamptz",
        "date",
        "old_c::date",
        "new_c::timestamptz",
        &["'2024-06-01 20:00+00'", "'2024-06-01 23:30-08'", "'infinity'", "null", "'2024-03-31 02:30+01'"],
    ),
    pair(
        "timestamptz",
        "text",
        "old_c::text",
        "new_c::timestamptz",
        &["'2024-06-01 20:00+00'", "'infinity'", "null", "'1999-12-31 23:59:59.999999Z'"],
    ),
    pair(
        "timestamp(3)",
        "timestamptz",
        "old_c at time zone 'Europe/Berlin'",
        "new_c at time zone 'Europe/Berlin'",
        &["'2024-01-01 12:00'", "'2024-07-01 12:00:00.123'", "null", "'infinity'"],
    ),
    pair(
        "timestamptz",
        "timestamp",
        "old_c at time zone 'Europe/Berlin'",
        "new_c at time zone 'Europe/Berlin'",
        &[
            "'2024-10-27 00:30Z'",
            "'2024-10-27 01:30Z'",
            "'2024-07-01 12:00:00.123456Z'",
            "null",
            "'-infinity'",
        ],
    ),
    pair(
        "timestamptz",
        "date",
        "(old_c at time zone 'America/New_York')::date",
        "new_c::timestamp at time zone 'America/New_York'",
        &["'2024-06-01 20:00Z'", "'2024-06-02 03:30Z'", "'infinity'", "null", "'2024-03-10 06:59:59Z'"],
    ),
    pair(
        "date",
        "text",
        "to_char(old_c, 'DD.MM.YYYY')",
        "to_date(new_c, 'DD.MM.YYYY')",
        &["'2024-02-29'", "'1999-01-02'", "null"],
    ),
    pair(
        "date",
        "text",
        "old_c::text",
        "new_c::date",
        &["'2024-02-01'", "'infinity'", "null", "'0001-01-01 BC'"],
    ),
    pair("time", "interval", "old_c::interval", "new_c::time", &["'00:00'", "'23:59:59.999'", "null"]),
    pair(
        "interval",
        "interval",
        "old_c",
        "new_c",
        &["'1 month'", "'30 days'", "'1 day'", "'24 hours'", "'-1 year 2 days'", "null"],
    ),
    pair(
        "interval",
        "text",
        "old_c::text",
        "new_c::interval",
        &["'1 mon -1 day'", "'30 days'", "'1:02:03.4'", "null", "'-3 days 04:00'"],
    ),
    pair(
        "json",
        "jsonb",
        "old_c::jsonb",
        "new_c::json",
        &["'{\"a\": 1, \"a\": 2}'", "'null'", "'[1, 1.0]'", "null", "'{}'", "'\" x \"'"],
    ),
    pair(
        "jsonb",
        "text",
        "old_c::text",
        "new_c::jsonb",
        &["'{\"b\":1,\"a\":[null]}'", "'null'", "'1.00'", "null", "'\"\\u00e4\"'"],
    ),
    pair("jsonb", "json", "old_c::json", "new_c::jsonb", &["'{\"b\":1}'", "'null'", "null", "'[]'"]),
    TEXTS_TO_JSON,
    pair(
        "integer[]",
        "text",
        "old_c::text",
        "new_c::integer[]",
        &["'{}'", "'{1,NULL}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'", "null"],
    ),
    pair(
        "varchar(5)[]",
        "text[]",
        "old_c::text[]",
        "new_c::varchar(5)[]",
        &["'{}'", "'{abcde,\" x\"}'", "null"],
    ),
    pair(
        "text",
        "text[]",
        "string_to_array(old_c, ',')",
        "array_to_string(new_c, ',')",
        &["'a,b'", "'a'", "null", "'a,,b'"],
    ),
    BYTES_TO_HEX,
    pair("bytea", "text", "old_c::text", "new_c::bytea", &["'\\x00ff'", "''", "null", "'abc'"]),
    pair(
        "text",
        "bytea",
        "convert_to(old_c, 'UTF8')",
        "convert_from(new_c, 'UTF8')",
        &["'a'", "''", "null", "'Äß'", "E'\\\\x41'"],
    ),
    pair(
        "double precision",
        "text",
        "old_c::text",
        "new_c::double precision",
        &["'NaN'", "'-Infinity'", "'-0'", "0.1::float8 + 0.2::float8", "1e308", "null", "5e-324"],
    ),
    pair(
        "real",
        "double precision",
        "old_c::double precision",
        "new_c::real",
        &["'NaN'", "0.1", "'-0'", "3.4e38", "null"],
    ),
    pair(
        "double precision",
        "numeric",
        "old_c::numeric",
        "new_c::double precision",
        &["1.5", "0", "null", "-2.25", "'NaN'"],
    ),
    pair("uuid", "text", "old_c::text", "new_c::uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "null"]),
    FLAG_TO_TEXT,
    pair("boolean", "smallint", "old_c::integer::smallint", "new_c <> 0", &["true", "false", "null"]),
    pair("mood", "text", "old_c::text", "new_c::mood", &["'low'", "'so so'", "'High'", "null"]),
    pair(
        "mood",
        "integer",
        "case old_c when 'low' then 1 when 'so so' then 2 when 'High' then 3 end",
        "(case new_c when 1 then 'low' when 2 then 'so so' when 3 then 'High' end)::mood",
        &["'low'", "'so so'", "'High'", "null"],
    ),
    partial(
        pair(
            "text",
            "integer",
            "case trim(old_c) when 'low' then 1 when 'so so' then 2 when 'High' then 3 else ('no mood ' || old_c)::integer end",
            "case new_c when 1 then 'low' when 2 then 'so so' when 3 then 'High' end",
            &["'low'", "' low '", "'so so'", "'High'", "null"],
        ),
        "'lost'",
    ),
    // A field of a document, whose other fields have no place on the other side.
    pair(
        "jsonb",
        "text",
        "old_c ->> 'a'",
        "case when new_c is not null then jsonb_build_object('a', new_c) end",
        &["'{\"a\":\"x\"}'", "'{\"a\":\"\",\"b\":1}'", "'{\"a\":{\"b\":[1.0]}}'", "null"],
    ),
    pair(
        "integer",
        "jsonb",
        "case when old_c is not null then jsonb_build_object('a', old_c) end",
        "(new_c ->> 'a')::integer",
        &["1", "0", "-7", "null"],
    ),
    pair("text", "mood", "lower(old_c)::mood", "new_c::text", &["'low'", "'so so'", "null", "'LOW'"]),
    pair("short_text", "text", "trim(old_c)", "new_c", &["' a'", "'a'", "''", "null"]),
    pair("text", "label", "trim(old_c)", "new_c", &["' a'", "'none'", "''", "null"]),
    partial(
        pair("text", "short_text", "old_c", "new_c", &["'a'", "''", "null", "' b '"]),
        "repeat('long', 20)",
    ),
    partial(pair("integer", "positive", "old_c", "new_c", &["1", "7", "null"]), "-7"),
    partial(TEXT_TO_INTEGER, "'n/a'"),
    partial(pair("text", "varchar(5)", "old_c", "new_c", &["'abcde'", "''", "null", "'a    '"]), "'abcdefg'"),
    partial(
        pair("text", "jsonb", "old_c::jsonb", "new_c::text", &["'{}'", "'[1]'", "null", "'\"a\"'"]),
        "'{a'",
    ),
    partial(
        pair("numeric", "integer", "old_c::integer", "new_c", &["1", "2.4", "null", "-2.5"]),
        "99999999999",
    ),
    // The function raises an error of its own, which no list of classes has.
    partial(
        pair("text", "integer", "strict_code(old_c)", "new_c::text", &["' 12 '", "'007'", "null", "'-3'"]),
        "'n/a'",
    ),
    partial(
        pair(
            "varchar(9)",
            "bigint",
            "strict_code(old_c)",
            "new_c::text",
            &["' 12 '", "'007'", "null", "'-3'"],
        ),
        "'n/a'",
    ),
    partial(
        pair("text", "numeric", "strict_code(old_c)", "new_c::text", &["' 12 '", "'007'", "null", "'-3'"]),
        "'n/a'",
    ),
    pair(
        "amount",
        "text",
        "(old_c).value || ' ' || (old_c).unit",
        "row(split_part(new_c, ' ', 1)::numeric, split_part(new_c, ' ', 2))::amount",
        &["row(1.50, 'EUR')", "row(2, 'a,b')", "null"],
    ),
    pair(
        "int4range",
        "text",
        "old_c::text",
        "new_c::int4range",
        &["'[1,5)'", "'empty'", "'(,)'", "'[1,5]'", "null"],
    ),
    pair("inet", "text", "old_c::text", "new_c::inet", &["'10.0.0.1'", "'10.0.0.0/8'", "'::1'", "null"]),
    pair("point", "text", "old_c::text", "new_c::point", &["'(1,2)'", "'(0.1,-0)'", "null"]),
    pair("text", "point", "old_c::point", "new_c::text", &["'(1,2)'", "' ( 1 , 2 ) '", "null"]),
    pair("bit(4)", "bit varying(6)", "old_c", "new_c", &["B'0101'", "B'0000'", "null"]),
    pair(
        "text",
        "tsvector",
        "to_tsvector('english', old_c)",
        "new_c::text",
        &["'quick foxes'", "''", "null"],
    ),
    pair("text", "text[]", "old_c::text[]", "new_c::text", &["'{a,NULL}'", "'{}'", "null"]),
    pair("text", "xml", "old_c::xml", "new_c::text", &["'<a/>'", "'text'", "null"]),
    pair(
        "text",
        "tsvector",
        "to_tsvector(old_c)",
        "new_c::text",
        &["'quick foxes'", "''", "null", "'die Häuser'"],
    ),
    pair("xml", "text", "old_c::text", "new_c::xml", &["'<a/>'", "'text'", "null", "'<a b=\"1\"> </a>'"]),
    pair("money", "numeric", "old_c::numeric", "new_c::money", &["'1.50'", "'0'", "null", "'-12.34'"]),
    pair("money", "text", "old_c::text", "new_c::money", &["'1.50'", "'1234.5'", "null"]),
    pair(
        "numeric",
        "text",
        "to_char(old_c, 'FM999D00')",
        "to_number(new_c, '999D00')",
        &["1.5", "12.25", "null"],
    ),
    pair("oid", "bigint", "old_c::bigint", "new_c::oid", &["0", "4294967295", "null"]),
    pair("name", "text", "old_c::text", "new_c::name", &["'abc'", "''", "null"]),
    pair(
        "regclass",
        "text",
        "old_c::text",
        "new_c::regclass",
        &["'pg_class'", "'pg_catalog.pg_type'", "null"],
    ),
];
