//! The page of `--html`.
use super::report::Results;
/// The page.
pub fn page(_results: &Results) -> Result<String, minijinja::Error> {
    Ok(String::new())
}
