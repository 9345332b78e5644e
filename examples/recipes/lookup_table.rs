use cutover::ConfigError;
use cutover::migration::ColumnMigration;

fn status(pool: sqlx::PgPool) -> Result<ColumnMigration, ConfigError> {
    ColumnMigration::new(pool, "items")
        .column("status", "status_id", "integer")
        .forward(
            "case status when 'open' then 1 when 'paid' then 2 when 'void' then 3 \
             else ('no status ' || status)::integer end",
        )
        .backward("case status_id when 1 then 'open' when 2 then 'paid' when 3 then 'void' end")
        .expand_sql("create table statuses (id integer primary key, name text not null unique)")
        .expand_sql("insert into statuses values (1, 'open'), (2, 'paid'), (3, 'void')")
        .expand_sql(
            "alter table items add constraint items_status_id_fkey \
             foreign key (status_id) references statuses not valid",
        )
        .allow("adding-foreign-key-constraint")
        .mirror_writes()
        .build()
}
