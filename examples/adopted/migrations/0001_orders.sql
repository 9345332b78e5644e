create table orders (id bigserial primary key, old_status text);
