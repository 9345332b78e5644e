use cutover_macros::dual_write;

struct PinnedTx;
struct Error;

#[dual_write]
trait Orders {
    async fn unmarked(&self, id: i64) -> Result<(), Error>;

    #[write(key = id)]
    async fn unpinned(&self, id: i64) -> Result<(), Error>;

    #[write(unknown_rows)]
    async fn shared(&self, tx: &PinnedTx) -> Result<(), Error>;

    #[write(unknown_rows)]
    async fn owned(&self, tx: PinnedTx) -> Result<(), Error>;

    #[write(unknown_rows)]
    async fn twice(&self, from: &mut PinnedTx, to: &mut PinnedTx) -> Result<(), Error>;

    #[read]
    fn blocking(&self) -> Result<(), Error>;

    #[read]
    async fn exclusive(&mut self) -> Result<(), Error>;

    #[read]
    async fn nobody() -> Result<(), Error>;

    #[read]
    async fn nothing(&self);

    #[read]
    #[write]
    async fn both(&self, tx: &mut PinnedTx) -> Result<(), Error>;

    #[read(by = id)]
    async fn by(&self, id: i64) -> Result<(), Error>;

    #[write]
    async fn whose(&self, tx: &mut PinnedTx, id: i64) -> Result<(), Error>;

    #[write(id)]
    async fn which(&self, tx: &mut PinnedTx, id: i64) -> Result<(), Error>;

    #[write(key = id)]
    async fn made(&self, tx: &mut PinnedTx, id: Option<i64>) -> Result<i64, Error>;

    #[insert]
    async fn keyless(&self, tx: &mut PinnedTx, id: Option<i64>) -> Result<i64, Error>;

    #[insert(key = id)]
    async fn missing(&self, tx: &mut PinnedTx) -> Result<i64, Error>;

    #[insert(key = id)]
    async fn given(&self, tx: &mut PinnedTx, id: i64) -> Result<i64, Error>;

    #[insert(key = id)]
    async fn unpinned_insert(&self, id: Option<i64>) -> Result<i64, Error>;
}

fn main() {}
