use cutover_macros::dual_write;

struct Error;

#[dual_write]
struct NoTrait;

#[dual_write(everything)]
trait Arguments {
    #[read]
    async fn get(&self) -> Result<(), Error>;
}

#[dual_write]
trait Associated {
    type Row;
    const LIMIT: usize;
    #[read]
    async fn get(&self) -> Result<(), Error>;
}

fn main() {}
