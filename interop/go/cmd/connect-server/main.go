// interop.v1.PlayService by connect-go: Connect, gRPC-Web and gRPC on one port, with reflection.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	v1 "quill.example/interop/gen/interop/v1"
	"quill.example/interop/gen/interop/v1/interopv1connect"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(interopv1connect.NewPlayServiceHandler(&play{}))
	reflector := grpcreflect.NewStaticReflector(interopv1connect.PlayServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	address := listener.Addr().String()
	told := map[string]string{"url": "http://" + address, "h2c_url": "http://" + address, "grpc_address": address}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: mux, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.Serve(listener))
}

type play struct {
	streams atomic.Int32
}

// Echo answers once.
func (p *play) Echo(ctx context.Context, request *v1.PlayRequest) (*v1.PlayResponse, error) {
	call, _ := connect.CallInfoForHandlerContext(ctx)
	header, trailer := answers(call.RequestHeader())
	merge(call.ResponseHeader(), header)
	merge(call.ResponseTrailer(), trailer)
	if err := wait(ctx, request.DelayMs); err != nil {
		return nil, err
	}
	if request.Fail {
		return nil, refusal(request.Text, header, trailer)
	}
	return &v1.PlayResponse{Text: request.Text, Index: uint32(p.streams.Load())}, nil
}

// Repeat answers with a stream.
func (p *play) Repeat(
	ctx context.Context, request *v1.PlayRequest, stream *connect.ServerStream[v1.PlayResponse],
) error {
	p.streams.Add(1)
	defer p.streams.Add(-1)
	call, _ := connect.CallInfoForHandlerContext(ctx)
	header, trailer := answers(call.RequestHeader())
	merge(stream.ResponseHeader(), header)
	merge(stream.ResponseTrailer(), trailer)
	for index := range request.Count {
		if err := wait(ctx, request.DelayMs); err != nil {
			return err
		}
		if err := stream.Send(&v1.PlayResponse{Text: request.Text, Index: index}); err != nil {
			return err
		}
	}
	if request.Fail {
		return refusal(request.Text, nil, nil)
	}
	return nil
}

// Collect takes a stream.
func (p *play) Collect(ctx context.Context, stream *connect.ClientStream[v1.PlayRequest]) (*v1.PlayResponse, error) {
	call, _ := connect.CallInfoForHandlerContext(ctx)
	header, trailer := answers(call.RequestHeader())
	merge(call.ResponseHeader(), header)
	merge(call.ResponseTrailer(), trailer)
	var texts []string
	for stream.Receive() {
		texts = append(texts, stream.Msg().Text)
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return &v1.PlayResponse{Text: strings.Join(texts, "+"), Index: uint32(len(texts))}, nil
}

// Converse takes turns.
func (p *play) Converse(_ context.Context, stream *connect.BidiStream[v1.PlayRequest, v1.PlayResponse]) error {
	header, trailer := answers(stream.RequestHeader())
	merge(stream.ResponseHeader(), header)
	merge(stream.ResponseTrailer(), trailer)
	for index := uint32(0); ; index++ {
		request, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&v1.PlayResponse{Text: request.Text, Index: index}); err != nil {
			return err
		}
	}
}

// answers are the headers and trailers that belong to those of a request.
func answers(request http.Header) (header, trailer http.Header) {
	header, trailer = http.Header{}, http.Header{}
	for _, suffix := range []string{"", "-Bin"} {
		if values := request.Values("X-Interop" + suffix); len(values) > 0 {
			header["X-Header"+suffix], trailer["X-Trailer"+suffix] = values, values
		}
	}
	return header, trailer
}

func merge(into, from http.Header) {
	for key, values := range from {
		into[key] = values
	}
}

func wait(ctx context.Context, delayMs uint32) error {
	select {
	case <-time.After(time.Duration(delayMs) * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func refusal(message string, headers ...http.Header) error {
	refused := connect.NewError(connect.CodeFailedPrecondition, errors.New(message))
	detail, err := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: "PLAYED", Domain: "interop"})
	if err != nil {
		return err
	}
	refused.AddDetail(detail)
	for _, header := range headers {
		merge(refused.Meta(), header)
	}
	return refused
}
