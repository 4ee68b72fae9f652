//! The JSON schema of the topology, for editors.
//! Called by cli and by the test that holds docs/topology.schema.json current. Pure.

use super::spec::FileSpec;

/// The schema as text, ending in a newline.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(FileSpec);
    format!("{:#}\n", schema.as_value())
}
