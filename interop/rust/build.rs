//! The generated clients, from the image that buf has made: no protoc is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=gen/image.binpb");
    let image = std::fs::read("gen/image.binpb")?;
    let files = prost_types::FileDescriptorSet::decode(image.as_slice())?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
